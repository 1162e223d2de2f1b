"""The way of events from the engine's thread to the event loop, and the brake on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from brainstacks.engine.request import Event, Routing
from brainstacks.errors import BrainstacksError

Reply = Event | Routing | BrainstacksError

Sink = Callable[[Reply], None]
"""Gets what a request is told: its events, or the error that ended it."""


class Replies:
    """What the engine says to the requests of one reader.

    Args:
        most: at so many unread replies they are to pause, until the reader has taken half of them.
    """

    def __init__(self, most: int, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.most = most
        self.pause = pause
        self.resume = resume
        self.queue: asyncio.Queue[tuple[int, Reply]] = asyncio.Queue()  # which request is told, and what
        self.paused = False

    def taken(self) -> None:
        """The reader has taken one from the queue."""
        if self.paused and self.queue.qsize() <= self.most // 2:
            self.paused = False
            self.resume()


class Outbox:
    """What the engine has said since the last `flush`; used on its thread alone.

    The event loop is woken once for each step, not for each token.
    """

    def __init__(self) -> None:
        self._held: list[tuple[Replies, int, Reply]] = []

    def put(self, replies: Replies, index: int, reply: Reply) -> None:
        """To the index-th request of a reader."""
        self._held.append((replies, index, reply))

    def flush(self) -> None:
        """Send all in one message to the loop of their readers, which is the same for all."""
        held, self._held = self._held, []
        if held and not held[0][0].loop.is_closed():
            held[0][0].loop.call_soon_threadsafe(_deliver, held)


def _deliver(held: list[tuple[Replies, int, Reply]]) -> None:
    for replies, index, reply in held:
        replies.queue.put_nowait((index, reply))
        if not replies.paused and replies.queue.qsize() >= replies.most:
            replies.paused = True
            replies.pause()
