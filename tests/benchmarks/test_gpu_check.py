"""The check of a GPU compares what it says, and fails where it must."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import gpu_check
from benchmarks.gpu_check import agreement
from tests.tiny import save_base

pytestmark = [pytest.mark.static_cuda, pytest.mark.slow]


def test_texts_agree_from_the_front() -> None:
    found = agreement("a", ((1, 2, 9, 4), (5, 6)), "b", ((1, 2, 3, 4), (5, 6)))
    assert (found.same, found.of, found.texts) == (4, 6, 1)
    assert found.holds
    assert not agreement("a", ((1,),), "b", ((2,),), exact=True).holds


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, for CUDA tensors")
def test_a_rehearsal_on_the_cpu_agrees_throughout(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tokenizer=False, num_hidden_layers=1)
    arguments = [
        "--base", str(base), "--device", "cpu", "--rows", "2", "--tokens", "2", "--prompt-tokens", "5",
        "--rank", "1", "--output", str(tmp_path),
    ]  # fmt: skip
    result = CliRunner().invoke(gpu_check.app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.count("4 of 4") == 6, result.output


def test_without_a_gpu_it_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(gpu_check.app, ["--output", str(tmp_path)])
    assert result.exit_code == 2
    assert "no CUDA device" in result.output
