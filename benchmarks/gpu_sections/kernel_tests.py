"""The project's own tests that a GPU is needed for, and those of every kernel, compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu_sections.findings import Findings, Mismatch
from benchmarks.gpu_sections.setting import Setting
from benchmarks.instruments.checkout import ROOT

MOST_PROCESSES = 8
KERNELS = ("tests/gpu_kernels", "tests/layers/test_fused_norms.py")
LINES = 40
"""Of what failed tests print, that are kept."""


def kernel_tests(setting: Setting, found: Findings) -> None:
    runs: dict[str, Sequence[str]] = {
        "pytest -m gpu": (*_with_marker("gpu"), "-m", "gpu"),
        "every kernel, compiled, against plain PyTorch": KERNELS,
    }
    if setting.rehearse:
        runs = {"a file of tests": ("tests/gpu_kernels/test_kv_store.py",)}
    for number, (what, chosen) in enumerate(runs.items()):
        with found.attempt(what) as told:
            seconds = found.left / (len(runs) - number)
            told.append(_pytest(chosen, seconds, setting.scratch / f"pytest-{number}.log"))


def _with_marker(name: str) -> list[str]:
    """Files of tests that speak of it: to collect all of them takes longer than these run."""
    return sorted(
        str(path) for path in ROOT.glob("tests/**/test_*.py") if f"pytest.mark.{name}" in path.read_text()
    )


def _pytest(chosen: Sequence[str], seconds: float, log: Path) -> str:
    """Its last line. Raises Mismatch: a test failed, there was none, or time was over."""
    processes = min(MOST_PROCESSES, os.cpu_count() or 1)
    together = ["-n", str(processes)] if find_spec("xdist") and processes > 2 else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *together, *chosen]
    code: object = f"stopped after {seconds:.0f} s"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    lines = log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
    if code != 0:
        raise Mismatch(f"pytest: {code}\n" + "\n".join(lines[-LINES:]))
    return lines[-1]
