"""The command that models a step on a GPU says of itself that it is a model, and what it assumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import gpu_model
from benchmarks.instruments.decoders import SMOLLM2_135M
from benchmarks.instruments.gpu_time import GPUS

pytestmark = pytest.mark.static_cuda


def test_the_command_names_what_it_assumes_and_that_nothing_was_measured(tmp_path: Path) -> None:
    arguments = ["--decoders", SMOLLM2_135M, "--batches", "1,2", "--output", str(tmp_path)]
    result = CliRunner().invoke(gpu_model.app, arguments)
    assert result.exit_code == 0, result.output
    (found,) = tmp_path.glob("*.json")
    document, text = json.loads(found.read_text()), found.with_suffix(".md").read_text()
    assert [(one["rows"], one["mix"]) for one in document["rows"]] == [
        (rows, mix) for rows, mix in ((1, "same"), (2, "same"), (2, "own")) for _ in GPUS
    ]
    assert "A model, not a measurement" in text
    assert all(f"{name}={value}" in text for name, value in document["assumed"]["slow"].items())


def test_a_goal_that_one_end_of_a_range_misses_is_open(tmp_path: Path) -> None:
    arguments = ["--decoders", SMOLLM2_135M, "--batches", "1", "--output", str(tmp_path)]
    CliRunner().invoke(gpu_model.app, arguments)
    (found,) = tmp_path.glob("*.json")
    for one in json.loads(found.read_text())["rows"]:
        ends = [end >= gpu_model.GOAL for end in (one["ratio"]["fast"], one["ratio"]["slow"])]
        assert one["goal"] == {2: "met", 1: "open", 0: "not met"}[sum(ends)]


def test_sizes_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(gpu_model.app, ["--decoders", "Llama-9", "--output", str(tmp_path)])
    assert result.exit_code == 2
    assert "Llama-9" in result.output
