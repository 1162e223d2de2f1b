"""The benchmark of signatures on other bases measures what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import signature_bases
from training.rounds.signature import signature_of


def test_each_base_is_read_with_the_signatures_of_each(
    tiny_directory: Path, data: Path, tmp_path: Path
) -> None:
    arguments = ["--data", str(data), "--base", str(tiny_directory), "--quantizations", "none,int8"]
    arguments += [
        "--device",
        "cpu",
        "--train",
        "16",
        "--validation",
        "4",
        "--output",
        str(tmp_path / "results"),
    ]
    result = CliRunner().invoke(signature_bases.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "results").glob("signature_bases-*.json")
    moved = json.loads(path.read_text())["moved"]
    assert set(moved) == {"none", "int8"}
    assert set(moved["none"]) == {"none, exact", "none, served", "int8, exact", "int8, served"}
    for one, others in moved.items():
        assert others[f"{one}, exact"]["added"] == others[f"{one}, exact"]["shift"] == 0
        assert others[f"{one}, served"]["added"] < 0.2, "the engine reads the same features"


def test_an_unknown_quantisation_is_refused(data: Path) -> None:
    result = CliRunner().invoke(signature_bases.app, ["--data", str(data), "--quantizations", "native,nf3"])
    assert result.exit_code == 2
    assert "nf3: no quantisation" in result.output


def test_what_is_added_and_shifted_are_of_the_same_prompts() -> None:
    chance = torch.Generator().manual_seed(0)

    def prompts(n: int, at: float) -> torch.Tensor:
        return torch.randn(n, 2, 16, generator=chance) + at

    signature = signature_of(prompts(16, 0.0), prompts(24, 1.0), "none")
    here = {"law": prompts(8, 1.0)}
    same = signature_bases.moved({"law": signature}, here, here)
    assert same["added"] == same["shift"] == 0
    further = signature_bases.moved({"law": signature}, here, {"law": prompts(8, -1.0)})
    assert further["added"] > 0.1
    assert further["shift"] == further["most_shift"] == pytest.approx(further["least_shift"])
    assert further["shift"] > 1
    assert further["applied"] < same["applied"]
