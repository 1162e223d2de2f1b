"""The engine behind asyncio: a thread that steps, and an async iterator per request."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from brainstacks import fresh_thread
from brainstacks.base_model import load_base, parse_dtype
from brainstacks.config import EngineConfig, Quantization
from brainstacks.cpu import cpu
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.interface import DomainStatus, Load, ModelInfo, Readiness, RouterStatus
from brainstacks.engine.replies import Replies, Reply
from brainstacks.engine.request import (
    CompositionRequest,
    Event,
    GenerationRequest,
    RoutedEvent,
    Routing,
)
from brainstacks.errors import BrainstacksError, DomainNotFound, EngineFailure, InvalidRequest, Unavailable
from brainstacks.stacks.artifact import read_stack_metadata
from brainstacks.stacks.manifest import History, Published, StackVersion
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.residency_stats import ResidencyStats
from brainstacks.stacks.router_artifact import check_router_base
from brainstacks.tokenizer import ChatTokenizer

log = logging.getLogger(__name__)

T = TypeVar("T")


class AsyncEngine:
    """Implements `brainstacks.engine.interface.Engine`.

    The engine thread owns the model; the event loop talks to it through a queue of commands. Changes of
    the registry run on worker threads, off both.
    """

    def __init__(self, engine: StepEngine, registry: Registry, tokenizer: ChatTokenizer) -> None:
        self._engine = engine
        self._registry = registry
        self._tokenizer = tokenizer
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._draining = False
        self._open: set[str] = set()  # ids of unfinished requests
        self._idle = asyncio.Event()
        self._idle.set()
        self._changing = asyncio.Lock()
        self._created = int(time.time())
        engine.set_on_change(lambda: self._commands.put(_nothing))  # wakes the thread: something can run now
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        *,
        base: str | os.PathLike[str],
        registry: str | os.PathLike[str],
        quantization: Quantization = "nf4",
        device: str = "auto",
        dtype: str | None = None,
        config: EngineConfig | None = None,
    ) -> AsyncEngine:
        """Load the base and everything that the registry serves; takes seconds to minutes.

        Raises:
            ConfigError, UnsupportedModel
        """
        store = Registry(Path(registry))

        def load() -> StepEngine:
            loaded = load_base(base, quantization=quantization, device=device, dtype=parse_dtype(dtype))
            return StepEngine(loaded, store, config or EngineConfig())

        engine = fresh_thread.call(load, "load")
        return cls(engine, store, engine.base.chat_tokenizer())

    # --- the engine thread ------------------------------------------------------------------------

    def _run(self) -> None:
        """Commands between steps; blocks on the queue when nothing can run."""
        if self._engine.backend.own_threads:
            # Of this thread alone: a team of torch's that spins between two small operators, such as the
            # sampler's, takes the cores from the step's own; and where others want them too, waiting for each
            # of its members at each operator slows a step out of all proportion.
            torch.set_num_threads(1)
        while True:
            while not self._engine.can_step or not self._commands.empty():
                command = self._commands.get()
                if command is None:
                    return
                command()
            self._engine.step()

    def _submit(self, add: Callable[[], None], sink: Callable[[Reply], None]) -> None:
        if self._draining:
            raise Unavailable("the server is shutting down; retry with another one", retry_after=5)
        if not self._thread.is_alive():
            raise Unavailable("the engine has stopped; restart the server")

        def command() -> None:
            try:
                add()
            except BrainstacksError as error:
                sink(error)
            except Exception:
                log.exception("a request could not be taken in")
                sink(EngineFailure("the engine could not take the request in; retry"))

        self._commands.put(command)

    # --- requests ---------------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        """See `interface.Engine`."""
        self._engine.check(request.prompt_ids, request.composition, request.sampling.max_tokens)
        left = request.n
        with self._opened(request.request_id) as replies:
            self._submit(lambda: self._engine.add(request, replies.put), replies.put)
            try:
                while left:
                    reply = await replies.get()
                    if isinstance(reply, BrainstacksError):
                        left = 0
                        raise reply
                    if isinstance(reply, Routing):
                        raise TypeError("a generation request got a bare route")
                    if not isinstance(reply, RoutedEvent) and reply.finish_reason is not None:
                        left -= 1
                    yield reply
            finally:
                if left:
                    self._commands.put(partial(self._engine.abort, request.request_id))

    async def route(
        self, request_id: str, prompt_ids: Sequence[int], composition: CompositionRequest
    ) -> Routing:
        """See `interface.Engine`."""
        self._engine.check(prompt_ids, composition, 0)
        with self._opened(request_id) as replies:
            self._submit(
                lambda: self._engine.add_route(request_id, prompt_ids, composition, replies.put), replies.put
            )
            try:
                reply = await replies.get()
            except asyncio.CancelledError:
                self._commands.put(partial(self._engine.abort, request_id))
                raise
        if isinstance(reply, BrainstacksError):
            raise reply
        if not isinstance(reply, Routing):
            raise TypeError("a request for a route got an event")
        return reply

    @contextmanager
    def _opened(self, request_id: str) -> Iterator[Replies]:
        """A request from its first word to its last. Raises InvalidRequest: another one has its id."""
        if request_id in self._open:
            raise InvalidRequest(f"request id {request_id!r} is in use; choose another", param="request_id")
        self._open.add(request_id)
        self._idle.clear()
        try:
            yield Replies(
                self._engine.config.max_unread_events,
                pause=lambda: self._commands.put(partial(self._engine.pause, request_id)),
                resume=lambda: self._commands.put(partial(self._engine.resume, request_id)),
            )
        finally:
            self._open.discard(request_id)
            if not self._open:
                self._idle.set()

    def routing_record(self, request_id: str) -> Routing:
        return self._engine.records.get(request_id)

    def routing_records(self, *, domain: str | None = None, active: bool | None = None) -> list[Routing]:
        return self._engine.records.recent(domain=domain, active=active)

    # --- what is served ---------------------------------------------------------------------------

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
            device=str(base.device),
            created=self._created,
            backend=self._engine.backend.name,
            cpu=str(cpu()),
        )

    @property
    def tokenizer(self) -> ChatTokenizer:
        return self._tokenizer

    @property
    def generation(self) -> int:
        return self._registry.generation

    def domains(self) -> list[DomainStatus]:
        domains = self._registry.snapshot().domains
        return [self._status(name, history) for name, history in domains.items() if self._serves(name)]

    def domain(self, name: str) -> DomainStatus:
        history = self._registry.snapshot().domains.get(name)
        if history is None:
            raise DomainNotFound(f"there is no domain {name!r}")
        return self._status(name, history)

    def _serves(self, name: str) -> bool:
        return name in self._engine.residency.serving

    def _status(self, name: str, history: History[StackVersion]) -> DomainStatus:
        residency = self._engine.residency
        resident = residency.serving.get(name)
        served = resident.published if resident is not None else history.current
        return DomainStatus(
            domain=name,
            version=served.version,
            digest=served.digest,
            versions=tuple(asdict(v) for v in history.versions),
            rounds=served.rounds,
            rank=served.rank,
            experts=served.experts,
            bytes=served.bytes,
            residency=residency.tier(name),
            pinned=residency.pinned(name),
            routable=self._engine.composer.routable(name),
            in_flight=residency.in_use(name),
            provenance=asdict(resident.metadata) if resident is not None else {},
        )

    def router(self) -> RouterStatus | None:
        history = self._registry.snapshot().router
        router = self._engine.composer.router
        if history is None or router is None:
            return None
        metadata = asdict(router.metadata)
        return RouterStatus(
            version=history.current.version,
            digest=history.current.digest,
            domains=router.config.domains,
            config=metadata.pop("config"),
            provenance=metadata,
        )

    def manifest(self) -> Mapping[str, Any]:
        return self._registry.snapshot().to_document()

    # --- changes ----------------------------------------------------------------------------------

    async def publish_stack(
        self, domain: str, file: Path, *, expected_generation: int | None = None
    ) -> Published:
        def publish() -> Published:
            return self._registry.publish(
                file,
                domain=domain,
                expected_generation=expected_generation,
                check=self._engine.residency.check,
            )

        return await self._change(publish)

    async def activate_stack(
        self, domain: str, version: int, *, expected_generation: int | None = None
    ) -> Published:
        def activate() -> Published:
            history = self._registry.snapshot().domain(domain)
            metadata = read_stack_metadata(self._registry.blob_path(history.version(version).digest))
            self._engine.residency.check(metadata)
            return self._registry.activate(domain, version, expected_generation=expected_generation)

        return await self._change(activate)

    async def delete_stack(
        self, domain: str, *, purge: bool = False, expected_generation: int | None = None
    ) -> Published:
        history = self._registry.snapshot().domains.get(domain)
        published = await self._change(
            lambda: self._registry.delete(domain, expected_generation=expected_generation)
        )
        if purge and history is not None:  # not before: a request may still wait for a version to be read
            purged = partial(self._engine.residency.purge, domain, history.versions)
            await asyncio.wrap_future(fresh_thread.start(purged, "registry"))
        return published

    async def publish_router(self, file: Path, *, expected_generation: int | None = None) -> Published:
        def publish() -> Published:
            identity = self._engine.base.identity
            return self._registry.publish_router(
                file,
                expected_generation=expected_generation,
                check=lambda m: check_router_base(m, identity.fingerprint, identity.hidden_size),
            )

        return await self._change(publish)

    async def reload(self) -> int:
        await self._change(self._registry.reload)
        return self.generation

    async def _change(self, change: Callable[[], T]) -> T:
        """Run a change of the registry, then serve what it says; both off the event loop and the step."""

        def run() -> T:
            changed = change()
            self._engine.sync()
            return changed

        async with self._changing:
            return await asyncio.wrap_future(fresh_thread.start(run, "registry"))

    # --- where stacks are -------------------------------------------------------------------------

    async def pin_stack(self, domain: str) -> DomainStatus:
        return await self._move(domain, self._engine.residency.pin)

    async def unpin_stack(self, domain: str) -> DomainStatus:
        return await self._move(domain, self._engine.residency.unpin)

    async def evict_stack(self, domain: str) -> DomainStatus:
        return await self._move(domain, self._engine.residency.evict)

    async def load_stack(self, domain: str) -> DomainStatus:
        return await self._move(domain, self._engine.residency.load)

    async def _move(self, domain: str, move: Callable[[str], None]) -> DomainStatus:
        """Not exclusive: it may wait for running requests to make room, and a publication need not."""
        await asyncio.wrap_future(fresh_thread.start(lambda: move(domain), "residency"))
        return self.domain(domain)

    # --- operations -------------------------------------------------------------------------------

    def load(self) -> Load:
        return self._engine.load

    def residency(self) -> ResidencyStats:
        return self._engine.residency.stats()

    async def healthy(self) -> bool:
        if not self._thread.is_alive():
            return False
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()

        def answer() -> None:
            loop.call_soon_threadsafe(lambda: None if answered.done() else answered.set_result(None))

        self._commands.put(answer)
        try:
            await asyncio.wait_for(answered, timeout=30)  # longer than the longest sane step
        except TimeoutError:
            return False
        return True

    def readiness(self) -> Readiness:
        problems = list(self._engine.problems)
        if self._draining:
            problems.insert(0, "the server is shutting down")
        if not self._thread.is_alive():
            problems.insert(0, "the engine thread has stopped")
        return Readiness(not self._draining and self._thread.is_alive(), tuple(problems))

    async def drain(self, timeout: float) -> None:
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            self._abort_open()
            await self._idle.wait()

    def _abort_open(self) -> None:
        late = Unavailable("the server shut down before the answer was complete; retry with another one")
        for request_id in self._open:
            self._commands.put(partial(self._engine.abort, request_id, late))

    async def close(self) -> None:
        self._draining = True
        self._abort_open()  # without a drain before, a reader would wait for ever
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)


def _nothing() -> None:
    """A command that only wakes the engine's thread."""
