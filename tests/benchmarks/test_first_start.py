"""Starts are measured on caches of their own, and held against what imports take besides."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.first_start import BARE, FIRST, LATER, Start, environment, report


def test_no_cache_of_this_process_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/elsewhere")
    monkeypatch.setenv("BRAINSTACKS_CPU", "avx2")
    variables = environment(tmp_path)
    assert variables["XDG_CACHE_HOME"] == str(tmp_path)
    assert "NUMBA_CACHE_DIR" not in variables
    assert variables["BRAINSTACKS_CPU"] == "avx2"


def test_targets_count_cpu_seconds_besides_the_imports() -> None:
    starts = {
        BARE: [Start(2.0, 3.0)],
        FIRST: [Start(20.0, 28.0, ("loading", "running"))],
        LATER: [Start(6.0, 8.1)],
    }
    document, text = report(starts)
    assert document["starts"][FIRST]["target_cpu_s"] == 28.0
    assert document["starts"][FIRST]["log"] == ["loading", "running"]
    first, later = (next(line for line in text.splitlines() if name in line) for name in (FIRST, LATER))
    assert " met " in first
    assert "not met" in later
    assert "loading\nrunning" in text
