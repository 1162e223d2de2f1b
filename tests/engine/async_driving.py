"""An `AsyncEngine` over a tiny base, and readers of its streams."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

from brainstacks.engine.async_engine import AsyncEngine
from brainstacks.engine.request import (
    CompositionRequest,
    Event,
    GenerationRequest,
    RoutedEvent,
    TextEvent,
)
from brainstacks.layers.packed_stack import StackTensors
from tests.engine.driving import Served, prompt_of, request, serve
from tests.tiny import plain_greedy, tiny_model, write_stack


class Running:
    """An `AsyncEngine` over a tiny base whose thread a test can hold."""

    def __init__(self, directory: Path, **limits: Any) -> None:
        self.served: Served = serve(directory, router=True, **limits)
        tokenizer = self.served.base.chat_tokenizer()
        self.directory = directory
        self.step = self.served.engine.step
        self.gate = threading.Event()
        self.gate.set()
        self.pauses = False
        self.served.engine.step = self._step  # type: ignore[method-assign]
        self.engine = AsyncEngine(self.served.engine, self.served.registry, tokenizer)
        trial = self.served.engine.serving.candidates.trial
        assert trial is not None
        trial._between_steps = self._between_steps

    def _between_steps(self, command: Callable[[], None]) -> None:
        """A thread that is held at the gate runs no step: what is to happen between two may happen now."""
        if self.gate.is_set():
            self.engine._thread.call(command)
        else:
            command()

    def _step(self) -> None:
        if not self.gate.wait(300):
            raise AssertionError("the test never resumed the engine")
        if not self.pauses:
            self.step()
            return
        self.gate.clear()  # before the step: a test that sees its token may set the gate at once
        self.step()
        self.pauses = not any(s.output_ids for s in self.served.engine._scheduler.running)
        if self.pauses:
            self.gate.set()

    def pause_at_first_token(self) -> None:
        """Let the engine run to the first token that any request gets, and no further until `gate` is set."""
        self.pauses = True

    def hold(self) -> threading.Event:
        """Keep the engine's thread from its next command and step until the event is set."""
        gate = threading.Event()

        def wait() -> None:
            gate.wait(300)

        self.engine._thread.put(wait)
        return gate

    def write(self, domain: str, stack: StackTensors) -> Path:
        return write_stack(
            self.directory / f"{domain}-new.safetensors", self.served.base.identity, domain, stack
        )

    async def told_to_abort(self) -> None:
        """Until an abort is in the engine's queue, or is done already."""
        while self.engine._thread._commands.empty() and self.served.engine.has_work:
            await asyncio.sleep(0)

    async def came_round(self) -> None:
        """Until the engine's thread has done all commands so far."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def came() -> None:
            loop.call_soon_threadsafe(done.set)

        self.engine._thread.put(came)
        await done.wait()

    async def idle(self) -> bool:
        """After all commands so far: nothing runs, waits or is pinned."""
        await self.came_round()
        load = self.engine.status.gauges()
        return (load.running, load.waiting) == (0, 0) and not any(
            d.in_flight for d in self.engine.stacks.domains()
        )


def long(name: str, composition: CompositionRequest, seed: int = 0) -> GenerationRequest:
    return request(name, prompt_of(6, seed), composition, max_tokens=120, ignore_eos=True)


async def stream(engine: AsyncEngine, one: GenerationRequest) -> AsyncGenerator[Event]:
    """The events of one request; closing it aborts the request."""
    events = cast(AsyncGenerator[tuple[int, Event]], engine.generate([one]))
    async with aclosing(events):
        async for index, event in events:
            assert index == 0
            yield event


async def collect(events: AsyncIterator[Event]) -> list[int]:
    """The token ids of a stream's completion 0."""
    return [i async for e in events if isinstance(e, TextEvent) and e.index == 0 for i in e.token_ids]


async def begin(events: AsyncIterator[Event]) -> list[int]:
    """Read up to the first token."""
    assert isinstance(await anext(events), RoutedEvent)
    first = await anext(events)
    assert isinstance(first, TextEvent)
    return list(first.token_ids)


def expected(running: Running, one: GenerationRequest, count: int = 120) -> list[int]:
    plain = running.served.plain(one.composition)
    return plain_greedy(tiny_model(), one.prompt_ids, count, plain, ends=())
