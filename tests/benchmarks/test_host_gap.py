"""The command that times what the host does between two steps sees each part of it, and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import host_gap
from benchmarks.instruments.decode_case import BASE_ONLY, DISTINCT
from brainstacks.engine.runner.cuda_step import CudaStep
from brainstacks.engine.sampling.transfers import HostCopy

pytestmark = pytest.mark.static_cuda


def test_every_step_in_which_all_rows_decode_is_timed_in_parts(tiny_directory: Path, tmp_path: Path) -> None:
    before = HostCopy.wait, CudaStep.send, CudaStep.compute
    arguments = ["--base", str(tiny_directory), "--batch-sizes", "1,3", "--tokens", "12"]
    arguments += ["--prompt-tokens", "20", "--output", str(tmp_path / "results")]
    result = CliRunner().invoke(host_gap.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (found,) = (tmp_path / "results").glob("*.json")
    cases = json.loads(found.read_text())["cases"]
    assert [(case["batch_size"], case["contestant"]) for case in cases] == [
        (1, BASE_ONLY), (3, BASE_ONLY), (3, DISTINCT)
    ]  # fmt: skip
    for case in cases:
        assert case["steps"] == 10, "of 12 tokens, the prompt gives one, and the last is followed by none"
        assert set(case["parts"]) == set(host_gap.PARTS)
        assert all(took > 0 for took in case["parts"].values())
        assert case["whole"]["p10"] <= case["whole"]["p50"] <= case["whole"]["p90"]
    assert (HostCopy.wait, CudaStep.send, CudaStep.compute) == before
