"""Every kernel compiles for the GPUs that people have, and keeps what it computes with in registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.instruments.checkout import ROOT
from benchmarks.instruments.decoders import GEMMA_3_12B
from benchmarks.kernel_resources import CAPABILITIES, MOST_SHARED, NAME

pytestmark = [pytest.mark.static_cuda, pytest.mark.slow]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """In a process of its own: this one interprets kernels."""
    output = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "benchmarks.kernel_resources"]
    subprocess.run(
        [*command, "--decoders", GEMMA_3_12B, "--output", str(output)],
        check=True,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
    )
    (found,) = output.glob(f"{NAME}-*.json")
    listed: list[dict[str, Any]] = json.loads(found.read_text())["kernels"]
    return listed


def test_no_kernel_spills(kernels: list[dict[str, Any]]) -> None:
    assert [one for one in kernels if one["spilled"]] == []


def test_every_kernel_fits_the_shared_memory_of_a_gpu_for_24_gb(kernels: list[dict[str, Any]]) -> None:
    assert [one for one in kernels if one["shared"] > MOST_SHARED] == []


def test_each_is_compiled_for_each_kind_of_gpu(kernels: list[dict[str, Any]]) -> None:
    names = {one["kernel"] for one in kernels}
    assert {name.split()[0].strip(",") for name in names} == {
        "down",
        "up",
        "store",
        "attend",
        "combine",
        "norm",
    }
    assert {(one["kernel"], one["capability"]) for one in kernels} == {
        (name, capability) for name in names for capability in CAPABILITIES
    }


def test_an_interpreted_kernel_is_not_taken_for_a_compiled_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernel_resources", "--output", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "TRITON_INTERPRET" in done.stderr
