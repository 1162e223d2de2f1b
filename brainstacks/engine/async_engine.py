"""The engine behind asyncio: an async iterator per request, over the thread that steps."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from brainstacks import fresh_thread
from brainstacks.base_model import load_base, parse_dtype
from brainstacks.config import EngineConfig, Quantization
from brainstacks.cpu import cpu
from brainstacks.device import gpu
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.engine_thread import EngineThread
from brainstacks.engine.facts import Gauges, ModelInfo, Readiness
from brainstacks.engine.replies import Replies
from brainstacks.engine.request import (
    CompositionRequest,
    Event,
    GenerationRequest,
    Request,
    RouteRequest,
    Routing,
    TextEvent,
)
from brainstacks.engine.serving.stack_admin import StackAdmin
from brainstacks.engine.serving.trial import CANARY, Trial
from brainstacks.errors import BrainstacksError, InvalidRequest, Unavailable
from brainstacks.stacks.blob_cache import BlobCache
from brainstacks.stacks.cache_stats import CacheStats
from brainstacks.stacks.location import absent
from brainstacks.stacks.registry import Registry
from brainstacks.tokenizer import ChatTokenizer

log = logging.getLogger(__name__)

LAST_WORDS = 1.0
"""Seconds that readers have, after a drain, to tell their clients that it is over."""


class AsyncEngine:
    """Implements `interface.Engine`.

    Attributes:
        stacks: administration of what is served.
        status: what the engine is and does.
    """

    def __init__(self, engine: StepEngine, registry: Registry, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer
        self.stacks = StackAdmin(engine.serving, registry)
        self._engine = engine
        self._open: set[str] = set()  # keys of unfinished requests
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread = EngineThread(engine)
        trial = engine.serving.candidates.trial = Trial(
            engine.base, engine.backend, tokenizer.encode(CANARY)[: engine.max_context], self._thread.call
        )
        self._thread.self_check = trial.base
        self.status = Status(engine, self._thread)

    @classmethod
    def open(
        cls,
        *,
        base: str | os.PathLike[str],
        registry: str | Path,
        cache: BlobCache | None = None,
        quantization: Quantization | None = None,
        device: str = "auto",
        device_map: str | None = None,
        dtype: str | None = None,
        config: EngineConfig | None = None,
    ) -> AsyncEngine:
        """Gauges the base and everything that the registry serves, which is made where there is none; takes
        seconds to minutes.

        Args:
            device_map: see `load_base`.
            registry, cache: see `Registry`. One that cannot be reached is served as it was last known here.

        Raises:
            ConfigError, UnsupportedModel
            Unavailable: the registry cannot be reached, and was never seen here.
        """
        if absent(registry):
            log.info("there is no registry %s; an empty one is made", registry)
        store = Registry(registry, create=True, cache=cache, last_known=True)
        if store.outdated is not None:
            log.warning("%s", store.outdated)

        def load() -> StepEngine:
            loaded = load_base(
                base,
                quantization=quantization,
                device=device,
                dtype=parse_dtype(dtype),
                device_map=device_map,
            )
            return StepEngine(loaded, store, config or EngineConfig())

        engine = fresh_thread.call(load, "load")
        opened = cls(engine, store, engine.base.chat_tokenizer())
        fresh_thread.call(engine.serving.try_all, "trial")
        return opened

    async def generate(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[tuple[int, Event]]:
        """See `interface.Engine`."""
        for request in requests:
            self._engine.check(request)
        grammars = [await self._engine.grammars.prepare(request.sampling.grammar) for request in requests]
        left = [request.n for request in requests]
        with self._opened(requests) as replies:
            try:
                for index, (request, grammar) in enumerate(zip(requests, grammars, strict=True)):
                    sink = partial(self._thread.outbox.put, replies, index)
                    self._thread.put(partial(self._engine.add, request, sink, grammar), sink)
                while any(left):
                    index, reply = await replies.queue.get()
                    replies.taken()
                    if isinstance(reply, BrainstacksError):
                        left[index] = 0
                        raise reply
                    if isinstance(reply, Routing):
                        raise TypeError("a generation request got a bare route")
                    if isinstance(reply, TextEvent) and reply.finish_reason is not None:
                        left[index] -= 1
                    yield index, reply
            finally:
                for request, unfinished in zip(requests, left, strict=True):
                    if unfinished:
                        self._thread.put(partial(self._engine.abort, request.key))

    async def route(
        self, request_id: str, prompt_ids: Sequence[int], composition: CompositionRequest, tenant: str = ""
    ) -> Routing:
        """See `interface.Engine`."""
        request = RouteRequest(request_id, tuple(prompt_ids), composition, tenant)
        self._engine.check(request)
        with self._opened([request]) as replies:
            sink = partial(self._thread.outbox.put, replies, 0)
            self._thread.put(partial(self._engine.add, request, sink), sink)
            try:
                _, reply = await replies.queue.get()
            except asyncio.CancelledError:
                self._thread.put(partial(self._engine.abort, request.key))
                raise
        if isinstance(reply, BrainstacksError):
            raise reply
        if not isinstance(reply, Routing):
            raise TypeError("a request for a route got an event")
        return reply

    @contextmanager
    def _opened(self, requests: Sequence[Request]) -> Iterator[Replies]:
        """Requests of one reader, from their first word to their last.

        Raises:
            InvalidRequest: another one has the id of one of them.
            Unavailable: the engine takes none any more.
        """
        if self.status.draining:
            raise Unavailable("the server is shutting down; retry with another one", retry_after=5)
        if not self._thread.alive:
            raise Unavailable("the engine has stopped; restart the server")
        keys = [request.key for request in requests]
        for request in requests:
            if request.key in self._open:
                raise InvalidRequest(
                    f"request id {request.request_id!r} is in use; choose another", param="request_id"
                )
        self._open.update(keys)
        self._idle.clear()

        def tell(verb: Callable[[str], None]) -> None:
            for key in keys:
                self._thread.put(partial(verb, key))

        try:
            yield Replies(
                self._engine.config.max_unread_events * len(keys),
                pause=partial(tell, self._engine.pause),
                resume=partial(tell, self._engine.resume),
            )
        finally:
            self._open.difference_update(keys)
            if not self._open:
                self._idle.set()

    async def ended(self) -> None:
        """See `interface.Engine`."""
        await asyncio.shield(asyncio.wrap_future(self._thread.ended))

    # --- the end ----------------------------------------------------------------------------------

    async def drain(self, timeout: float) -> None:
        """See `interface.Engine`."""
        self.status.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            self._abort_open()
            # Nobody need read that: a client that has stopped reading does not hold up the end.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), LAST_WORDS)

    async def close(self) -> None:
        """See `interface.Engine`."""
        self.status.draining = True
        self._abort_open()  # without a drain before, a reader would wait for ever
        await self._thread.stop()

    def _abort_open(self) -> None:
        late = Unavailable("the server shut down before the answer was complete; retry with another one")
        for key in self._open:
            self._thread.put(partial(self._engine.abort, key, late))


class Status:
    """Implements `interface.Status`.

    Attributes:
        draining: no new requests are taken.
    """

    def __init__(self, engine: StepEngine, thread: EngineThread) -> None:
        self.draining = False
        self._engine = engine
        self._thread = thread
        self._created = int(time.time())
        self._gpus = [str(one) for one in map(gpu, engine.base.devices) if one is not None]

    @property
    def model(self) -> ModelInfo:
        base = self._engine.base
        return ModelInfo(
            name=base.name,
            max_context=self._engine.max_context,
            vocab_size=base.vocab_size,
            fingerprint=base.identity.fingerprint,
            quantization=base.quantization,
            dtype=base.dtype_name,
            device=base.where,
            created=self._created,
            backend=self._engine.backend.name,
            backend_reason=self._engine.backend.reason,
            cpu=str(cpu()),
            gpu=", ".join(self._gpus) or None,
            device_stack_bytes=self._engine.config.device_stack_bytes,
            kv_cache_tokens=self._engine.gauges.kv_tokens_total,
        )

    def gauges(self) -> Gauges:
        return self._engine.gauges

    def cache(self) -> CacheStats:
        return self._engine.serving.stats()

    def routing_record(self, request_id: str, tenant: str = "") -> Routing:
        return self._engine.records.get(request_id, tenant)

    def routing_records(self, *, domain: str | None = None, active: bool | None = None) -> list[Routing]:
        return self._engine.records.recent(domain=domain, active=active)

    def silence(self) -> float:
        return self._thread.silence()

    def problem(self) -> str | None:
        return self._thread.problem

    def readiness(self) -> Readiness:
        problems = list(self._engine.serving.problems)
        if self._thread.problem is not None:
            problems.insert(0, self._thread.problem)
        if self.draining:
            problems.insert(0, "the server is shutting down")
        if not self._thread.alive:
            problems.insert(0, "the engine thread has stopped")
        able = self._thread.alive and self._thread.problem is None
        unrouted = self._engine.serving.unrouted
        return Readiness(able and not self.draining, tuple(problems), unrouted)
