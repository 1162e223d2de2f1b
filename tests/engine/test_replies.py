"""Replies: from the engine's thread to the event loop, with a brake for readers that fall behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from brainstacks.engine.replies import Outbox, Replies
from brainstacks.engine.request import TextEvent

pytestmark = pytest.mark.anyio


class Request:
    """A request with a limit of 8 unread replies, and what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.outbox = Outbox()
        self.replies = Replies(8, lambda: self.told.append("pause"), lambda: self.told.append("resume"))

    async def put(self, count: int) -> None:
        """As the engine's thread does."""

        def run() -> None:
            for i in range(count):
                self.outbox.put(self.replies, 0, TextEvent(index=i, text=""))
            self.outbox.flush()

        await asyncio.to_thread(run)
        await asyncio.sleep(0)

    async def take(self, count: int) -> list[int]:
        found = []
        for _ in range(count):
            _, event = await self.replies.queue.get()
            self.replies.taken()
            assert isinstance(event, TextEvent)
            found.append(event.index)
        return found


async def test_replies_arrive_in_order() -> None:
    request = Request()
    await request.put(7)
    assert await request.take(7) == list(range(7))
    assert request.told == []


async def test_at_the_limit_the_request_pauses_once_and_resumes_when_half_is_read() -> None:
    request = Request()
    await request.put(8)
    await request.put(2)  # were under way
    assert request.told == ["pause"]
    await request.take(5)
    assert request.told == ["pause"]
    await request.take(1)
    assert request.told == ["pause", "resume"]
    await request.take(4)
    await request.put(8)
    assert request.told == ["pause", "resume", "pause"]


async def test_a_reply_after_the_loop_has_closed_is_nobodys() -> None:
    request = Request()
    loop = asyncio.new_event_loop()
    loop.close()
    request.replies.loop = loop
    request.outbox.put(request.replies, 0, TextEvent(index=0, text=""))
    request.outbox.flush()
    assert request.told == []


async def test_what_all_requests_are_told_in_a_step_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, messages = asyncio.get_running_loop(), []
    send = loop.call_soon_threadsafe

    def sent(*args: Any) -> asyncio.Handle:
        messages.append(args)
        return send(*args)

    requests, outbox = [Request(), Request()], Outbox()
    for number in range(3):
        for request in requests:
            outbox.put(request.replies, 0, TextEvent(index=number, text=""))
    monkeypatch.setattr(loop, "call_soon_threadsafe", sent)
    outbox.flush()
    outbox.flush()
    assert len(messages) == 1
    for request in requests:
        assert await request.take(3) == [0, 1, 2]
