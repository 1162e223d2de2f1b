"""The same streams in process, read by nobody: what the engine says is dropped on its own thread."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import count, cycle

from brainstacks.engine.async_engine import AsyncEngine
from brainstacks.engine.replies import Reply
from brainstacks.engine.request import GenerationRequest, TextEvent
from brainstacks.errors import BrainstacksError


class Unread:
    """Streams at the engine: each asks again as soon as it has been answered.

    Args:
        firsts: each stream's first request.
        following: those that are asked then, in turn, again and again, each time by another name.

    Attributes:
        failed: gets the error that the engine told a stream, if it does.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        firsts: Sequence[GenerationRequest],
        following: Sequence[GenerationRequest],
    ) -> None:
        self.failed: Future[str] = Future()
        self._thread, self._engine = engine._thread, engine._engine
        self._following = zip(count(), cycle(following))
        self._asked: dict[int, str] = {}  # stream -> the key of its request
        self._ending = False
        for stream, request in enumerate(firsts):
            self._ask(stream, request)

    def end(self) -> None:
        """Drop what still runs."""
        self._ending = True
        self._thread.call(lambda: None)  # whoever saw an answer's end before that has asked again
        for key in tuple(self._asked.values()):
            self._thread.call(partial(self._engine.abort, key))

    def _ask(self, stream: int, request: GenerationRequest) -> None:
        self._asked[stream] = request.key
        sink = partial(self._told, stream)
        self._thread.put(partial(self._engine.add, request, sink), sink)

    def _told(self, stream: int, reply: Reply) -> None:
        if isinstance(reply, BrainstacksError):
            if not self.failed.done():
                self.failed.set_result(reply.message)
        elif isinstance(reply, TextEvent) and reply.finish_reason is not None and not self._ending:
            number, request = next(self._following)
            self._ask(stream, replace(request, request_id=f"following-{number}"))
