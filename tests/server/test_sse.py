"""Clients that leave: their work is aborted, whole or streamed, wherever it stands."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.types import Message

from server import sse
from tests.server.fake_engine import FakeEngine
from tests.server.raw_asgi import RawRequest

pytestmark = pytest.mark.anyio

JSON = [("Content-Type", "application/json")]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "tiny", "prompt": ["x", "y"], "n": 2},
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "x"}]},
}


def test_an_event_is_one_ascii_line_whatever_the_text() -> None:
    event = sse.event({"text": "a\nb\u2028é\U0001f600"})
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.isascii()
    assert event.count(b"\n") == 2
    assert json.loads(event[6:]) == {"text": "a\nb\u2028é\U0001f600"}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_aborts_its_generation(
    app: FastAPI, engine: FakeEngine, path: str, stream: bool
) -> None:
    engine.hold = asyncio.Event()
    request = RawRequest(app, "POST", path, JSON)
    request.feed(json.dumps({**BODIES[path], "stream": stream}).encode())
    await asyncio.wait_for(engine.reached.wait(), 5)
    request.leave()
    await request.finished()
    assert sorted(engine.aborted) == sorted(each.request_id for each in engine.requests)
    assert len(engine.aborted) == (2 if path == "/v1/completions" else 1)
    context = app.state.context
    assert context.metrics.registry.get_sample_value("brainstacks_aborts_total") == 1


async def test_a_stream_sends_each_piece_as_it_comes(app: FastAPI, engine: FakeEngine) -> None:
    engine.hold = asyncio.Event()
    request = RawRequest(app, "POST", "/v1/chat/completions", JSON)
    request.feed(json.dumps({**BODIES["/v1/chat/completions"], "stream": True}).encode())
    while b'"content":"H"' not in request.body:
        request.progress.clear()
        await asyncio.wait_for(request.progress.wait(), 5)
    assert b"[DONE]" not in request.body  # the rest is held back
    engine.hold.set()
    await request.finished()
    assert request.body.endswith(sse.DONE)
    assert request.sent[-1].get("more_body") is False
    assert engine.aborted == []


async def test_a_thousand_streams_opened_and_dropped_leave_nothing_running(
    app: FastAPI, engine: FakeEngine
) -> None:
    engine.hold = asyncio.Event()
    before = len(asyncio.all_tasks())
    body = json.dumps({**BODIES["/v1/chat/completions"], "stream": True}).encode()
    requests = [RawRequest(app, "POST", "/v1/chat/completions", JSON) for _ in range(1000)]
    for request in requests:
        request.feed(body)
    while len(engine.requests) < 1000 or not all(request.sent for request in requests):
        await asyncio.sleep(0)
    for request in requests:
        request.leave()
    await asyncio.gather(*(request.task for request in requests))
    assert len(engine.aborted) == 1000
    assert len(asyncio.all_tasks()) == before


async def test_work_is_cancelled_and_awaited_when_the_client_leaves() -> None:
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned = True

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        await sse.until_disconnect(receive, work())
    assert cleaned


async def test_a_finished_work_wins_over_a_client_that_stays() -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def work() -> int:
        return 5

    assert await sse.until_disconnect(receive, work()) == 5
