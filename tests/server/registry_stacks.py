"""The fake engine's stacks where a test needs their versions and files: those of a real registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from brainstacks.engine.facts import DomainStatus, RouterStatus
from brainstacks.stacks.manifest import History, Manifest, Published, Version
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import read_router_metadata
from tests.server.fake_engine import FakeEngine
from tests.server.fake_stacks import FakeStacks


class RegistryStacks(FakeStacks):
    """Serves what the registry's manifest says, at once; only pins and tiers are the fake engine's."""

    def __init__(self, engine: FakeEngine, registry: Registry) -> None:
        super().__init__(engine)
        self.registry = registry
        self.sync()

    def sync(self) -> None:
        self._engine.generation = self.registry.generation
        self._engine.names = list(self.registry.snapshot().domains)

    def _synced(self, published: Published) -> Published:
        self.sync()
        return published

    def domain(self, name: str) -> DomainStatus:
        history = self.registry.snapshot().domain(name)
        served, router = history.current, self.router()
        known = router is not None and router.provenance["stacks"].get(name) == served.digest
        return DomainStatus(
            name, served.version, served.digest, tuple(dataclasses.asdict(v) for v in history.versions),
            served.rounds, served.rank, served.experts, served.bytes, self._engine.tiers.get(name, "disk"),
            name in self._engine.pinned, known, "router" if known else None, 0,
        )  # fmt: skip

    def router(self) -> RouterStatus | None:
        history = self.registry.snapshot().router
        if history is None:
            return None
        metadata = read_router_metadata(self.registry.blob_path(history.current.digest))
        return RouterStatus(
            history.current.version,
            history.current.digest,
            metadata.config.domains,
            {},
            {"stacks": dict(metadata.stacks)},
        )

    def manifest(self) -> Mapping[str, Any]:
        return self.registry.snapshot().to_document()

    async def stored(self) -> Manifest:
        return self.registry.stored()

    async def publish(
        self,
        domain: str,
        file: Path,
        *,
        expected_generation: int | None = None,
        before: Manifest | None = None,
    ) -> Published:
        return self._synced(
            self.registry.publish(file, domain=domain, expected_generation=expected_generation, before=before)
        )

    async def publish_router(
        self, file: Path, *, expected_generation: int | None = None, before: Manifest | None = None
    ) -> Published:
        return self._synced(
            self.registry.publish_router(file, expected_generation=expected_generation, before=before)
        )

    async def activate(
        self, domain: str, version: int, *, expected_generation: int | None = None
    ) -> Published:
        return self._synced(self.registry.activate(domain, version, expected_generation=expected_generation))

    async def activate_router(self, version: int, *, expected_generation: int | None = None) -> Published:
        return self._synced(self.registry.activate_router(version, expected_generation=expected_generation))

    async def file(self, domain: str, version: int) -> tuple[Version, BinaryIO]:
        return self._open(self.registry.snapshot().domain(domain), version)

    async def router_file(self, version: int) -> tuple[Version, BinaryIO]:
        return self._open(self.registry.snapshot().routers(), version)

    def _open(self, history: History[Any], number: int) -> tuple[Version, BinaryIO]:
        version: Version = history.version(number)
        return version, self.registry.blob_path(version.digest).open("rb")
