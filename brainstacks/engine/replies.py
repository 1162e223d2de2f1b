"""The way of a request's events from the engine's thread to the event loop, and the brake on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from brainstacks.engine.request import Event, Routing
from brainstacks.errors import BrainstacksError

Reply = Event | Routing | BrainstacksError

Sink = Callable[[Reply], None]
"""Gets what a request is told: its events, or the error that ended it."""


class Outbox:
    """What the engine has said to all requests since the last `flush`; used on its thread alone.

    An event loop is woken once for each step, not for each token.
    """

    def __init__(self) -> None:
        self._held: list[tuple[Replies, Reply]] = []

    def put(self, replies: Replies, reply: Reply) -> None:
        self._held.append((replies, reply))

    def flush(self) -> None:
        """Send all in one message to the loop of their readers, which is the same for all."""
        held, self._held = self._held, []
        if held and not held[0][0].loop.is_closed():
            held[0][0].loop.call_soon_threadsafe(_deliver, held)


def _deliver(held: list[tuple[Replies, Reply]]) -> None:
    for replies, reply in held:
        replies.arrive(reply)


class Replies:
    """What the engine says to one request, as its reader gets it.

    Args:
        most: at so many unread replies the request is to pause, until the reader has taken half of them.
    """

    def __init__(self, most: int, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._most = most
        self._pause = pause
        self._resume = resume
        self.loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Reply] = asyncio.Queue()
        self._paused = False

    def arrive(self, reply: Reply) -> None:
        self._queue.put_nowait(reply)
        if not self._paused and self._queue.qsize() >= self._most:
            self._paused = True
            self._pause()

    async def get(self) -> Reply:
        reply = await self._queue.get()
        if self._paused and self._queue.qsize() <= self._most // 2:
            self._paused = False
            self._resume()
        return reply
