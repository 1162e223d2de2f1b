"""Stacks and routers as an operator changes them, while requests run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from brainstacks import fresh_thread
from brainstacks.engine.facts import DomainStatus, RouterStatus
from brainstacks.engine.serving.serving import Serving
from brainstacks.errors import BrainstacksError, DomainNotFound, VersionNotFound
from brainstacks.stacks.loader import as_reply
from brainstacks.stacks.manifest import History, Manifest, Published, StackVersion, Version
from brainstacks.stacks.registry import Registry

log = logging.getLogger(__name__)

T = TypeVar("T")


class StackAdmin:
    """Implements `interface.Stacks`. Changes run on worker threads, off the event loop and the step.

    Args:
        serving: what the engine serves of `registry`.
    """

    def __init__(self, serving: Serving, registry: Registry) -> None:
        self._serving = serving
        self._cache = serving.cache
        self._registry = registry
        self._changing = asyncio.Lock()

    # --- what is served ---------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        return self._registry.generation

    def names(self) -> list[str]:
        return [name for name in self._registry.snapshot().domains if name in self._cache.serving]

    def domains(self) -> list[DomainStatus]:
        domains = self._registry.snapshot().domains
        return [self._status(name, domains[name]) for name in self.names() if name in domains]

    def domain(self, name: str) -> DomainStatus:
        history = self._registry.snapshot().domains.get(name)
        if history is None:
            raise DomainNotFound(f"there is no domain {name!r}")
        return self._status(name, history)

    def _status(self, name: str, history: History[StackVersion]) -> DomainStatus:
        stack = self._cache.serving.get(name)
        served = stack.published if stack is not None else history.current
        return DomainStatus(
            domain=name,
            version=served.version,
            digest=served.digest,
            versions=tuple(asdict(v) for v in history.versions),
            rounds=served.rounds,
            rank=served.rank,
            experts=served.experts,
            bytes=served.bytes,
            residency=self._cache.tier(name),
            pinned=name in self._cache.pinned,
            routable=(routed_by := self._serving.routed_by(name)) is not None,
            routed_by=routed_by,
            in_flight=self._cache.in_use(name),
            provenance=stack.provenance if stack is not None else {},
        )

    def router(self) -> RouterStatus | None:
        router, version = self._serving.router, self._serving.reading.router_version
        if router is None or version is None:
            return None
        metadata = asdict(router.metadata)
        return RouterStatus(
            version=version.version,
            digest=version.digest,
            domains=router.config.domains,
            config=metadata.pop("config"),
            provenance=metadata,
        )

    def manifest(self) -> Mapping[str, Any]:
        return self._registry.snapshot().to_document()

    async def stored(self) -> Manifest:
        return await _aside(self._registry.stored)

    async def file(self, domain: str, version: int) -> tuple[Version, BinaryIO]:
        return await _aside(partial(self._open, self._registry.snapshot().domain(domain), version))

    async def router_file(self, version: int) -> tuple[Version, BinaryIO]:
        return await _aside(partial(self._open, self._registry.snapshot().routers(), version))

    def _open(self, history: History[Any], number: int) -> tuple[Version, BinaryIO]:
        version: Version = history.version(number)
        try:
            return version, self._registry.blob_path(version.digest).open("rb")
        except FileNotFoundError:  # purged since it was verified
            raise VersionNotFound(f"version {number} has just been deleted") from None

    # --- changes ----------------------------------------------------------------------------------

    async def publish(
        self,
        domain: str,
        file: Path,
        *,
        expected_generation: int | None = None,
        before: Manifest | None = None,
    ) -> Published:
        publish = partial(self._registry.publish, file, domain=domain, before=before)
        check = self._serving.candidates.receive
        return await self._change(partial(publish, expected_generation=expected_generation, check=check))

    async def activate(
        self, domain: str, version: int, *, expected_generation: int | None = None
    ) -> Published:
        def activate() -> Published:
            history = self._registry.snapshot().domain(domain)
            self._serving.candidates.version(domain, history.version(version))
            return self._registry.activate(domain, version, expected_generation=expected_generation)

        return await self._change(activate)

    async def delete(
        self, domain: str, *, purge: bool = False, expected_generation: int | None = None
    ) -> Published:
        history = self._registry.snapshot().domains.get(domain)
        published = await self._change(
            lambda: self._registry.delete(domain, expected_generation=expected_generation)
        )
        if purge and history is not None:  # not before: a request may still wait for a version to be read
            await _aside(partial(self._serving.purge, domain, history.versions))
        return published

    async def publish_router(
        self, file: Path, *, expected_generation: int | None = None, before: Manifest | None = None
    ) -> Published:
        publish = partial(self._registry.publish_router, file, before=before)
        check = self._serving.candidates.receive_router
        return await self._change(partial(publish, expected_generation=expected_generation, check=check))

    async def activate_router(self, version: int, *, expected_generation: int | None = None) -> Published:
        def activate() -> Published:
            history = self._registry.snapshot().routers()
            self._serving.candidates.router(history.version(version).digest)
            return self._registry.activate_router(version, expected_generation=expected_generation)

        return await self._change(activate)

    async def reload(self) -> int:
        await self._change(self._registry.reload)
        return self.generation

    async def follow(self, seconds: float) -> None:
        """See `interface.Stacks`."""
        while True:
            await asyncio.sleep(seconds)
            problem = None
            try:
                if await _aside(self._registry.changed):
                    before, generation = self.generation, await self.reload()
                    if generation != before:
                        log.info("another process changed the registry; generation %d is served", generation)
            except Exception as error:  # it comes again, and the server serves on
                problem = f"the registry cannot be followed: {as_reply(error, 'looking at it').message}"
                if problem != self._serving.registry_problem:
                    log.warning("%s", problem, exc_info=not isinstance(error, BrainstacksError))
            self._serving.registry_problem = problem

    async def _change(self, change: Callable[[], T]) -> T:
        """Run a change of the registry, then serve what it says; what it tried is not read again."""

        def run() -> T:
            try:
                changed = change()
                self._serving.sync()
            finally:
                self._serving.candidates.forget()
            return changed

        async with self._changing:
            return await _aside(run)

    # --- where stacks are -------------------------------------------------------------------------

    async def pin(self, domain: str) -> DomainStatus:
        return await self._move(domain, self._serving.pin)

    async def unpin(self, domain: str) -> DomainStatus:
        return await self._move(domain, self._serving.unpin)

    async def evict(self, domain: str) -> DomainStatus:
        return await self._move(domain, self._serving.evict)

    async def load(self, domain: str) -> DomainStatus:
        return await self._move(domain, self._serving.load)

    async def _move(self, domain: str, move: Callable[[str], None]) -> DomainStatus:
        """Not exclusive: it may wait for running requests to make room, and a publication need not."""
        await asyncio.wrap_future(fresh_thread.start(lambda: move(domain), "stacks"))
        return self.domain(domain)


async def _aside(function: Callable[[], T]) -> T:
    """On a thread of its own, which a stop does not wait for: the registry may be slow, or not answer."""
    return await asyncio.wrap_future(fresh_thread.start(function, "registry"))
