"""The prompts of one HTTP request, run side by side, their events merged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import cast

from brainstacks.engine.interface import Engine
from brainstacks.engine.request import Event, GenerationRequest, RoutedEvent, TextEvent
from brainstacks.errors import EngineFailure
from server.metrics import Metrics

MAX_UNREAD = 16
"""Events that wait here for a slow client; what follows stays with the engine, which pauses the request."""

_Item = tuple[int, TextEvent | Exception | None]


class Generation:
    """Several `GenerationRequest`s as one; `close` aborts whatever still runs.

    Args:
        begin: when the HTTP request came in (`time.perf_counter`), for the metrics.
    """

    def __init__(
        self, engine: Engine, requests: Sequence[GenerationRequest], metrics: Metrics, begin: float
    ) -> None:
        self.engine = engine
        self.requests = requests
        self.metrics = metrics
        self.begin = begin
        self.routed: list[RoutedEvent] = []
        self.completion_tokens: dict[tuple[int, int], int] = {}
        self._items: asyncio.Queue[_Item] = asyncio.Queue()
        self._room = asyncio.Event()  # set: the engine's events may come
        self._room.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._last_token: dict[tuple[int, int], float] = {}
        self._finished = False
        self._closing = False

    async def start(self) -> list[RoutedEvent]:
        """Start all prompts; how each was composed. Raises the first prompt's error that refused."""
        loop = asyncio.get_running_loop()
        first: list[asyncio.Future[RoutedEvent]] = [loop.create_future() for _ in self.requests]
        self._tasks = [
            asyncio.create_task(self._pump(index, request, first[index]))
            for index, request in enumerate(self.requests)
        ]
        try:
            self.routed = list(await asyncio.gather(*first))
        except BaseException:
            await self.close()
            for future in first:
                if not future.cancelled() and future.done():
                    future.exception()  # seen; only the first one is reported
            raise
        for event in self.routed:
            self.metrics.prompt_tokens.inc(event.prompt_tokens)
            self.metrics.observe_routing(event.routing)
        return self.routed

    async def texts(self) -> AsyncIterator[tuple[int, TextEvent]]:
        """(index of the prompt, event) until every completion has finished. Raises what the engine raises."""
        open_prompts = len(self.requests)
        while open_prompts:
            prompt, item = await self._items.get()
            if self._items.qsize() <= MAX_UNREAD // 2:
                self._room.set()
            if item is None:
                open_prompts -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                self._observe(prompt, item)
                yield prompt, item
        self._finished = True

    async def close(self) -> None:
        """Abort what still runs, and wait until the engine knows. Safe to call twice."""
        if self.routed and not self._finished and not self._closing:
            self.metrics.aborts.inc()
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def usage(self) -> dict[str, int]:
        """Exact token counts so far: every prompt once, every completion that was generated."""
        prompt = sum(event.prompt_tokens for event in self.routed)
        completion = sum(self.completion_tokens.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    async def _pump(self, index: int, request: GenerationRequest, first: asyncio.Future[RoutedEvent]) -> None:
        events = cast(AsyncGenerator[Event], self.engine.generate(request))
        try:
            async with aclosing(events):  # so that being cancelled outside of it reaches the engine as well
                async for event in events:
                    if isinstance(event, RoutedEvent):
                        first.set_result(event)
                        continue
                    self._items.put_nowait((index, event))
                    # Until all prompts are routed nobody reads: to wait for a reader could be for ever.
                    if self.routed and self._items.qsize() >= MAX_UNREAD:
                        self._room.clear()
                        await self._room.wait()
            if not first.done():
                raise EngineFailure("The engine ended this request without routing it; try again")
        except Exception as error:
            self._fail(index, error, first)
        except asyncio.CancelledError:
            if not self._closing:  # from inside the engine, not from `close`: the client still waits
                self._fail(index, EngineFailure("The engine cancelled this request; try again"), first)
            raise
        else:
            self._items.put_nowait((index, None))

    def _fail(self, index: int, error: Exception, first: asyncio.Future[RoutedEvent]) -> None:
        if not first.done():
            first.set_exception(error)
        else:
            self._items.put_nowait((index, error))

    def _observe(self, prompt: int, event: TextEvent) -> None:
        now = time.perf_counter()
        key = (prompt, event.index)
        count = event.completion_tokens - self.completion_tokens.get(key, 0)
        self.completion_tokens[key] = max(event.completion_tokens, self.completion_tokens.get(key, 0))
        if count > 0:
            self.metrics.completion_tokens.inc(count)
            last = self._last_token.get(key)
            if last is None:
                self.metrics.first_token.observe(now - self.begin)
            else:
                self.metrics.inter_token.observe((now - last) / count)
            self._last_token[key] = now
        if event.finish_reason is not None:
            self.metrics.end_to_end.observe(now - self.begin)
