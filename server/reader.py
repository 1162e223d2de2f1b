"""The prompts of one HTTP request, run side by side: how each was composed, then their text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from brainstacks.engine.interface import Engine
from brainstacks.engine.request import Event, GenerationRequest, RoutedEvent, TextEvent
from brainstacks.errors import EngineFailure
from server.composition import compact
from server.metrics import Metrics
from server.summary import Generation


class Reader:
    """Several `GenerationRequest`s as one; `close` aborts whatever still runs.

    Nothing is read ahead of the client: what it does not take stays with the engine, which then pauses.

    Args:
        begin: when the HTTP request came in (`time.perf_counter`), for the metrics.
        key: the name of the API key that it came with, for them too; empty without.
    """

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[GenerationRequest],
        metrics: Metrics,
        begin: float,
        key: str = "",
    ) -> None:
        self.requests = requests
        self.metrics = metrics
        self.begin = begin
        self._tokens_in, self._tokens_out = (
            metrics.prompt_tokens.labels(key),
            metrics.completion_tokens.labels(key),
        )
        self.routed: list[RoutedEvent] = []
        self.completion_tokens: dict[tuple[int, int], int] = {}
        self._events = cast(AsyncGenerator[tuple[int, Event]], engine.generate(requests))
        self._early: list[tuple[int, TextEvent]] = []  # that came before every prompt was routed
        self._last_token: dict[tuple[int, int], float] = {}
        self._last_event: dict[tuple[int, int], TextEvent] = {}
        self._finished = self._closed = False

    async def start(self) -> list[RoutedEvent]:
        """Start all prompts; how each was composed. Raises what refuses one of them; none then runs."""
        found: dict[int, RoutedEvent] = {}
        with _cancelled_inside():
            async for prompt, event in self._events:
                if isinstance(event, RoutedEvent):
                    found[prompt] = event
                else:
                    self._early.append((prompt, event))
                if len(found) == len(self.requests):
                    break
            else:
                raise EngineFailure("The engine ended this request without routing it; try again")
        self.routed = [found[prompt] for prompt in range(len(found))]
        for event in self.routed:
            self._tokens_in.inc(event.prompt_tokens)
            self.metrics.observe_routing(event.routing)
        return self.routed

    async def texts(self) -> AsyncIterator[tuple[int, TextEvent]]:
        """(index of the prompt, event) until every completion has finished. Raises what the engine raises."""
        for prompt, event in self._early:
            self._observe(prompt, event)
            yield prompt, event
        with _cancelled_inside():
            async for prompt, following in self._events:
                if isinstance(following, RoutedEvent):
                    raise EngineFailure("The engine routed this request twice; try again")
                self._observe(prompt, following)
                yield prompt, following
        self._finished = True

    async def finish(self) -> None:
        """Read to the end, whatever comes."""
        async for _ in self.texts():
            pass

    async def close(self) -> None:
        """Abort what still runs. Safe to call twice."""
        if self.routed and not self._finished and not self._closed:
            self.metrics.aborts.inc()
        self._closed = True
        await self._events.aclose()

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

    def told(self) -> Generation | None:
        """What came of it so far; None before its prompts were routed."""
        if not self.routed:
            return None
        ended, asked = self._last_event.values(), len(self.requests) * self.requests[0].n
        reasons = {event.finish_reason or "abort" for event in ended} | (
            {"abort"} if len(ended) < asked else set()
        )
        return Generation(
            composition=compact(self.routed[0].routing),
            domains=tuple(dict.fromkeys(name for each in self.routed for name in each.routing.active)),
            prompt_tokens=self.usage["prompt_tokens"],
            completion_tokens=self.usage["completion_tokens"],
            finish_reason="+".join(sorted(reasons)),
            timings=tuple(event.timing for event in ended if event.timing is not None),
        )

    def _observe(self, prompt: int, event: TextEvent) -> None:
        now = time.perf_counter()
        key = (prompt, event.index)
        count = event.completion_tokens - self.completion_tokens.get(key, 0)
        self.completion_tokens[key] = max(event.completion_tokens, self.completion_tokens.get(key, 0))
        if count > 0:
            self._tokens_out.inc(count)
            last = self._last_token.get(key)
            if last is None:
                self.metrics.first_token.observe(now - self.begin)
            else:
                self.metrics.inter_token.observe((now - last) / count)
            self._last_token[key] = now
        if event.finish_reason is not None:
            self._last_event[key] = event
            self.metrics.end_to_end.observe(now - self.begin)
            if event.timing is not None:
                self.metrics.observe_timing(event.timing)


@contextmanager
def _cancelled_inside() -> Iterator[None]:
    """A cancellation that comes from inside the engine is its failure: the client still waits."""
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise EngineFailure("The engine cancelled this request; try again") from None
