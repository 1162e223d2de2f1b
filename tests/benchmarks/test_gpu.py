"""The command for a GPU loses nothing to a part that fails or hangs, and its parts exist."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import gpu, gpu_decode
from benchmarks.gpu import Part, run_all
from benchmarks.instruments.checkout import ROOT
from benchmarks.instruments.decoders import TINY

pytestmark = pytest.mark.static_cuda


def test_a_part_that_fails_or_hangs_takes_no_other_with_it_and_results_come_after_each(
    tmp_path: Path,
) -> None:
    every = [
        Part("right", ("-c", "print('fine')"), 30),
        Part("wrong", ("-c", "raise SystemExit(3)"), 30),
        Part("endless", ("-c", "import time; print('x', flush=True); time.sleep(60)"), 2),
        Part("after all", ("-c", "print('still here')"), 30),
    ]
    done = run_all(every, minutes=1, output=tmp_path)
    assert [outcome.status for outcome in done] == ["passed", "failed (3)", "stopped", "passed"]
    (found,) = tmp_path.glob("gpu-*.json")
    assert [part["said"] for part in json.loads(found.read_text())["parts"]] == [
        ["fine"], [], ["x"], ["still here"],
    ]  # fmt: skip


def test_what_no_longer_fits_is_left_out_and_said_to_be(tmp_path: Path) -> None:
    (done,) = run_all([Part("long", ("-c", "print()"), 60)], minutes=0.1, output=tmp_path)
    assert done.status == "left out"


def test_every_part_is_a_command_that_exists() -> None:
    for part in gpu.parts(ROOT):
        assert part.command[0] == "-m"
        if part.command[1] == "pytest":
            assert all((ROOT / path).exists() for path in part.command if path.startswith("tests/"))
        else:
            module = importlib.import_module(part.command[1])
            arguments = [*part.command[2:], "--help"]
            assert CliRunner().invoke(module.app, arguments).exit_code == 0, part.name
    assert sum(part.seconds for part in gpu.parts(ROOT)[:3]) < 8 * 60, "right first"


def test_without_a_gpu_it_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for app in (gpu.app, gpu_decode.app):
        result = CliRunner().invoke(app, ["--output", str(tmp_path)])
        assert result.exit_code == 2
        assert "no CUDA device" in result.output


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, for CUDA tensors")
def test_a_rehearsal_of_the_figures_on_the_cpu(tmp_path: Path) -> None:
    arguments = [
        "--decoder", TINY, "--layers", "1", "--device", "cpu", "--batches", "1", "--lengths", "4",
        "--stacks", "4", "--rank", "1", "--rounds", "1", "--tokens", "2", "--prompt-tokens", "2",
        "--output", str(tmp_path),
    ]  # fmt: skip
    result = CliRunner().invoke(gpu_decode.app, arguments)
    assert result.exit_code == 0, result.output
    (found,) = tmp_path.glob("*.json")
    document = json.loads(found.read_text())
    assert document["settings"]["weights"] == "random"
    assert set(document["decode"][0]["ratio_to_base"]) == set(gpu_decode.cases(["a", "b", "c", "d"], 1))
    assert document["load"]["bytes"] > 0
