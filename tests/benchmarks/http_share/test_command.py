"""The command measures the same streams twice, accounts for the engine's time, and leaves nothing behind."""

from __future__ import annotations

import gc
import sys
import threading
from typing import Any

import psutil
import pytest

from benchmarks.http_share import interpreter
from benchmarks.http_share.figures import ALONE, HTTP

QUICK = ("--streams", "2", "--rounds", "2", "--seconds", "0.4", "--tokens", "64", "--profile-seconds", "0")


def test_every_mix_is_measured_over_http_and_in_process(run: Any) -> None:
    before = sys.getswitchinterval(), gc.get_freeze_count(), threading.active_count()
    document, output = run("http_share", *QUICK, registry=True)
    assert [(case["streams"], case["mix"]) for case in document["cases"]] == [
        (2, "base"), (2, "fixed"), (2, "routed")
    ]  # fmt: skip
    for case in document["cases"]:
        assert set(case["decode_step_ms"]) == {HTTP, ALONE}
        assert case["above_limit"] == (case["longer_percent"]["median"] > 5)
        for contestant in (HTTP, ALONE):
            parts = case["engine_ms"][contestant]
            for number, whole in enumerate(case["step_ms"][contestant]["rounds"]):
                assert sum(part["rounds"][number] for part in parts.values()) == pytest.approx(whole, rel=0.1)
        assert case["others_ms"][HTTP]["client"]["min"] > 0
        assert case["others_ms"][ALONE]["client"]["max"] == 0
        assert case["others_ms"][HTTP]["loop"]["median"] > case["others_ms"][ALONE]["loop"]["median"]
    assert "## Where a step's time goes" in output
    assert "## Who has the interpreter" not in output, "nobody looked"
    assert (sys.getswitchinterval(), gc.get_freeze_count(), threading.active_count()) == before
    assert not psutil.Process().children()


def test_the_parts_of_the_loops_work_are_told_apart(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def sampled(seconds: int, *, holding: bool) -> dict[interpreter.Part, float]:
        assert seconds == 3
        line = "thread (1): MainThread;event (server/sse.py:20) 30"
        return interpreter.shares([line] * (1 if holding else 2), 300)

    monkeypatch.setattr(interpreter, "sampled", sampled)
    quick = (*QUICK[:-1], "3", "--compositions", "base")
    document, output = run("http_share", *quick)
    (case,) = document["cases"]
    assert case["holds_interpreter"]["loop, events: SSE and JSON"] == 0.1
    assert case["on_or_ready_for_a_core"]["loop, events: SSE and JSON"] == 0.2
    assert "10.0 (20.0)" in output
