"""A server that benchmarks start says why it did not."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.server_process import running


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"(?s)did not start.*--max-queue"),
        running(tmp_path, ["--max-queue", "0"]),
    ):
        pytest.fail("it started")
