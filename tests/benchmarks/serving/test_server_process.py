"""A server that benchmarks start says why it did not."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from pathlib import Path

import pytest

from benchmarks.serving.server_process import _read, running


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"(?s)did not start.*--max-queue"),
        running(tmp_path, ["--max-queue", "0"]),
    ):
        pytest.fail("it started")


def test_a_progress_bar_takes_one_line_of_the_log() -> None:
    log: deque[str] = deque(maxlen=3)
    started: Future[str] = Future()
    bar = "".join(f"converting: {percent}%\r" for percent in range(100))
    _read(["loading\n", bar + "converting: done\n", "running on http://127.0.0.1:81\n"], log, started)
    assert list(log) == ["loading\n", "converting: done\n", "running on http://127.0.0.1:81\n"]
    assert started.result() == "http://127.0.0.1:81"
