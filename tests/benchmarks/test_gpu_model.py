"""The model of a step on a GPU counts what the program launches, and says of itself that it is a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import gpu_model
from benchmarks.instruments.decode_model import GPUS, Launch, Time, decode
from benchmarks.instruments.decode_model import Decode as Step
from benchmarks.instruments.decoders import SMOLLM2_135M

pytestmark = pytest.mark.static_cuda


def test_a_composition_adds_eight_launches_a_layer_and_their_bytes() -> None:
    alone, composed = (decode(SMOLLM2_135M, 2, 64, stacks) for stacks in (0, 4))
    assert composed.launches(GPUS[0]) - alone.launches(GPUS[0]) == 8 * 30
    assert composed.nbytes(GPUS[0]) > alone.nbytes(GPUS[0])


def test_a_launch_takes_its_bytes_or_the_floor_and_one_beside_hides_behind_the_base() -> None:
    gpu = GPUS[0]
    second = gpu.bandwidth * gpu.share
    step = Step((), (Launch("down", second), Launch("linear", 3 * second), Launch("up", 0.0)), 0)
    assert Time(gpu, floor=1e6, beside=False).of(step) == pytest.approx(1 + 3 + 1)
    assert Time(gpu, floor=1e6, beside=True).of(step) == pytest.approx(4 + 1), "bandwidth is shared"


def test_the_command_names_what_it_assumes_and_that_nothing_was_measured(tmp_path: Path) -> None:
    arguments = ["--decoders", SMOLLM2_135M, "--batches", "1,2", "--output", str(tmp_path)]
    result = CliRunner().invoke(gpu_model.app, arguments)
    assert result.exit_code == 0, result.output
    (found,) = tmp_path.glob("*.json")
    document = json.loads(found.read_text())
    assert len(document["rows"]) == 2 * len(GPUS) * len(gpu_model.FLOORS)
    assert set(document["assumed"]) == {gpu.name for gpu in GPUS}
    assert "A model, not a measurement" in found.with_suffix(".md").read_text()


def test_sizes_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(gpu_model.app, ["--decoders", "Llama-9", "--output", str(tmp_path)])
    assert result.exit_code == 2
    assert "Llama-9" in result.output
