"""The way of a request's events from the engine's thread to the event loop, and the brake on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from brainstacks.engine.request import Event, Routing
from brainstacks.errors import BrainstacksError

Reply = Event | Routing | BrainstacksError


class Replies:
    """What the engine says to one request, from its thread to the reader's event loop.

    Args:
        most: at so many unread replies the request is to pause, until the reader has taken half of them.
    """

    def __init__(self, most: int, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._most = most
        self._pause = pause
        self._resume = resume
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Reply] = asyncio.Queue()
        self._paused = False

    def put(self, reply: Reply) -> None:
        """On the engine's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrive, reply)

    def _arrive(self, reply: Reply) -> None:
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
