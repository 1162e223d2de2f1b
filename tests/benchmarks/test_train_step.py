"""The training-step benchmark: contestants are equal where they must be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import train_step
from benchmarks.instruments.step_times import AUTOCAST, PEFT


def test_every_contestant_steps_at_both_shapes(tiny_directory: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    flags = ["--base", str(tiny_directory), "--quantization", "none", "--device", "cpu", "--rounds", "2"]
    flags += ["--batch-size", "2", "--tokens", "12", "--output", str(tmp_path)]
    result = CliRunner().invoke(train_step.app, flags, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("train_step-*.json")
    assert str(tiny_directory) not in path.read_text()
    cases = json.loads(path.read_text())["cases"]
    assert [case["stack"]["rank"] for case in cases] == [2, 16]
    for case in cases:
        counts = case["trainable_parameters"]
        assert set(counts) == set(case["seconds_per_step"])
        assert max(counts.values()) <= 1.1 * min(counts.values())
        assert set(case["over_peers"]) == {PEFT, AUTOCAST}
        assert list(case["growth_per_frozen_stack"]) == ["1", "2", "4"]
    assert "growth per frozen stack" in result.output


def test_help_gives_a_quick_example() -> None:
    result = CliRunner().invoke(train_step.app, ["--help"])
    assert "python -m benchmarks.train_step " in " ".join(result.output.split())
