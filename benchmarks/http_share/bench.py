"""Windows of running streams, over HTTP and in process, on one engine."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

from benchmarks.http_share import threads
from benchmarks.http_share.asks import Mix, firsts, following
from benchmarks.http_share.client import Plan
from benchmarks.http_share.figures import Window
from benchmarks.http_share.steps import StepLog, periods
from benchmarks.http_share.threads import ThreadTime
from benchmarks.http_share.unread import Unread
from benchmarks.instruments.checkout import ROOT
from brainstacks.engine.async_engine import AsyncEngine
from brainstacks.errors import Unavailable

LOOK_SECONDS = 0.05
LEAST_STEPS = 20
"""Of a window: it lasts longer than it is asked to where a machine is too slow or too busy for that."""

T = TypeVar("T")


@dataclass(frozen=True)
class Running:
    """Streams that run.

    Attributes:
        failed: done when one of them has failed, with the reason.
        client: the id of the process that reads them; None without one.
    """

    failed: asyncio.Future[str]
    client: int | None = None


Streams = Callable[[Mix, int], AbstractAsyncContextManager[Running]]
"""So many streams of a mix, running within the block."""


class Bench:
    """Args:
    address: where `engine` is served, by this process.
    tokens: of each answer.
    """

    def __init__(self, engine: AsyncEngine, log: StepLog, address: tuple[str, int], tokens: int) -> None:
        self._engine = engine
        self._log = log
        self._host, self._port = address
        self._tokens = tokens

    async def window(self, streams: Streams, mix: Mix, count: int, seconds: float) -> Window:
        """What happens in so many seconds of `count` running streams.

        Raises:
            RuntimeError: a stream failed.
            Unavailable: the server was told to stop.
        """
        async with self._running(streams, mix, count) as running:
            before, client = threads.own(), _times_of(running.client)
            since = perf_counter()
            await self._while_running(running, asyncio.sleep(seconds))
            while len(periods(self._log.steps, since, perf_counter())) < LEAST_STEPS:
                await self._while_running(running, asyncio.sleep(LOOK_SECONDS))
            until = perf_counter()
            spent = threads.spent(before, threads.own(), threads.kinds())
            read = _times_of(running.client) - client
            return Window(until - since, periods(self._log.steps, since, until), spent, read)

    async def during(self, streams: Streams, mix: Mix, count: int, work: Awaitable[T]) -> T:
        """The result of `work`, done while so many streams run. Raises as `window`."""
        async with self._running(streams, mix, count) as running:
            return await self._while_running(running, work)

    @asynccontextmanager
    async def over_http(self, mix: Mix, count: int) -> AsyncIterator[Running]:
        """Streams that a process of their own reads."""
        model = self._engine.status.model.name
        plan = Plan(
            self._host,
            self._port,
            [ask.body(model) for ask in firsts(mix, count, self._tokens)],
            [ask.body(model) for ask in following(mix, self._tokens)],
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.http_share.client"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the client has no pipes")
        failed = asyncio.ensure_future(_all_of(process.stdout))
        try:
            process.stdin.write(plan.to_line())
            await process.stdin.drain()
            yield Running(failed, process.pid)
        finally:
            process.stdin.close()
            await process.wait()
            await failed

    @asynccontextmanager
    async def in_process(self, mix: Mix, count: int) -> AsyncIterator[Running]:
        """Streams that nobody reads."""
        tokenizer = self._engine.tokenizer
        begin = [
            ask.request(f"first-{row}", tokenizer) for row, ask in enumerate(firsts(mix, count, self._tokens))
        ]
        then = [ask.request("", tokenizer) for ask in following(mix, self._tokens)]
        unread = Unread(self._engine, begin, then)
        try:
            yield Running(asyncio.wrap_future(unread.failed))
        finally:
            unread.end()

    @asynccontextmanager
    async def _running(self, streams: Streams, mix: Mix, count: int) -> AsyncIterator[Running]:
        """From when as many answers have begun."""
        past = len(self._log.steps)
        async with streams(mix, count) as running:
            while sum(step.begun for step in self._log.steps[past:]) < count:
                await self._while_running(running, asyncio.sleep(LOOK_SECONDS))
            yield running
        while self._engine.status.gauges().running:  # a client that has gone is noticed a little later
            await asyncio.sleep(LOOK_SECONDS)

    async def _while_running(self, running: Running, work: Awaitable[T]) -> T:
        doing = asyncio.ensure_future(work)
        await asyncio.wait((doing, running.failed), return_when=asyncio.FIRST_COMPLETED)
        if self._engine.status.draining:
            raise Unavailable("the measurement was stopped before its end; nothing is written")
        if running.failed.done():
            doing.cancel()
            raise RuntimeError(f"a stream failed: {running.failed.result()}")
        return doing.result()


async def _all_of(output: asyncio.StreamReader) -> str:
    """What a client says; it ends when that is closed."""
    return (await output.read()).decode()


def _times_of(client: int | None) -> ThreadTime:
    if client is None:
        return ThreadTime()
    return sum(threads.thread_times(client).values(), ThreadTime())
