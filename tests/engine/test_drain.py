"""A drain lets what runs finish, takes nothing new, and ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from brainstacks.engine.request import (
    CompositionRequest,
)
from brainstacks.errors import (
    Unavailable,
)
from tests.engine.async_driving import Running, begin, collect, expected, long, stream
from tests.engine.driving import fixed, request

ROUTED = CompositionRequest("routed")
pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_backend")]


async def test_a_drain_lets_running_requests_finish_and_takes_no_new_ones(running: Running) -> None:
    engine, one = running.engine, long("r", fixed(chat=1.0))
    events = stream(engine, one)
    ids = await begin(events)
    rest = asyncio.create_task(collect(events))
    await engine.drain(timeout=120)
    assert ids + await rest == expected(running, one)
    with pytest.raises(Unavailable):
        await anext(stream(engine, request("late", [1])))
    with pytest.raises(Unavailable):
        await engine.route("late", [1], ROUTED)
    assert not engine.status.readiness().ready


async def test_a_drain_that_runs_out_of_time_tells_the_rest(running: Running) -> None:
    running.pause_at_first_token()
    events = stream(running.engine, long("r", fixed(chat=1.0)))
    await begin(events)
    rest = asyncio.create_task(collect(events))
    drain = asyncio.create_task(running.engine.drain(timeout=0))
    await running.told_to_abort()
    running.gate.set()
    await drain
    with pytest.raises(Unavailable, match="shut down"):
        await rest
    assert await running.idle()


async def test_closing_the_engine_ends_open_streams_instead_of_leaving_them_waiting(tmp_path: Path) -> None:
    running = Running(tmp_path)
    running.pause_at_first_token()
    events = stream(running.engine, long("r", fixed(chat=1.0)))
    await begin(events)
    rest = asyncio.create_task(collect(events))
    close = asyncio.create_task(running.engine.close())
    await running.told_to_abort()
    running.gate.set()
    await close
    with pytest.raises(Unavailable):
        await asyncio.wait_for(rest, 300)
