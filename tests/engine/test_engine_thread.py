"""The engine's thread as others see it: whether it comes round, and its end."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from brainstacks.engine import async_engine
from brainstacks.engine.request import CompositionRequest
from brainstacks.errors import Unavailable
from tests.engine.async_driving import Running, begin, collect, long, stream
from tests.engine.driving import prompt_of, request

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_backend")]


async def test_health_follows_the_engines_thread(tmp_path: Path) -> None:
    running = Running(tmp_path)
    assert running.engine.status.silence() == 0
    assert running.engine.status.readiness().ready
    await running.engine.close()
    assert running.engine.status.silence() == math.inf
    assert not running.engine.status.readiness().ready


async def test_silence_is_the_age_of_one_step_and_never_waits_for_it(running: Running) -> None:
    """However many commands are queued behind the step."""
    running.gate.clear()
    rest = asyncio.create_task(collect(stream(running.engine, request("r", prompt_of(4)))))
    while not running.engine.status.silence():
        await asyncio.sleep(0)
    before = running.engine.status.silence()
    for _ in range(100):
        running.engine._thread.put(lambda: None)
    assert running.engine.status.silence() > before
    running.gate.set()
    await rest
    await running.came_round()
    while running.engine.status.silence():  # it has nothing to do any more
        await asyncio.sleep(0)


async def test_hostile_34_a_reader_that_has_stopped_does_not_hold_up_a_drain(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_engine, "LAST_WORDS", 0.01)
    events = stream(running.engine, long("r", CompositionRequest("base")))
    await begin(events)
    await asyncio.wait_for(running.engine.drain(0.01), 60)
    assert await running.idle(), "its memory is free, though its client has not read"
    with pytest.raises(Unavailable):
        await collect(events)
