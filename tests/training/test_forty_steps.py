"""Forty steps at a stretch are twenty, a new process, and twenty more: by the hash of everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PARTS = {
    "active", "snapshot", "optimizer", "random numbers", "data cursor and history",
    "settings of the optimiser", "schedule", "log",
}  # fmt: skip


def hashes(*arguments: str | Path) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.forty_steps", *arguments],
        check=True,
        timeout=300,
        stdout=subprocess.PIPE,
    )
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_forty_steps_are_twenty_a_new_process_and_twenty_more(tiny_directory: Path, tmp_path: Path) -> None:
    straight = hashes(tiny_directory, tmp_path / "straight")
    assert hashes(tiny_directory, tmp_path / "stopped", "20") == {}
    resumed = hashes(tiny_directory, tmp_path / "stopped")
    assert straight.keys() >= PARTS
    assert resumed == straight
