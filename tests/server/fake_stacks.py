"""The stacks of the fake engine as an operator changes them, without tensors."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from brainstacks.engine.facts import DomainStatus, RouterStatus
from brainstacks.errors import Conflict, DomainNotFound, StaleGeneration, VersionNotFound
from brainstacks.stacks.manifest import History, Manifest, Published, StackVersion, Version

if TYPE_CHECKING:
    from tests.server.fake_engine import FakeEngine

FLOOR = 0.12


class FakeStacks:
    """Administration; what it knows is the engine's."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    @property
    def generation(self) -> int:
        return self._engine.generation

    def names(self) -> list[str]:
        return list(self._engine.names)

    def domains(self) -> list[DomainStatus]:
        return [self.domain(name) for name in self._engine.names]

    def domain(self, name: str) -> DomainStatus:
        if name not in self._engine.names:
            raise DomainNotFound(f"There is no domain {name!r}")
        version = asdict(self._version(name))
        return DomainStatus(
            name, self._engine.versions[name], f"digest-{name}", (version,), 2, 4, 4, 100,
            self._engine.tiers.get(name, "disk"), name in self._engine.pinned, True, "router",
            int(name in self._engine.used),
        )  # fmt: skip

    def router(self) -> RouterStatus | None:
        return (
            RouterStatus(1, "digest-router", tuple(self._engine.names), {"gate_threshold": FLOOR})
            if self._engine.names
            else None
        )

    def manifest(self) -> Mapping[str, Any]:
        domains = {name: History(1, 1, (self._version(name),)) for name in self._engine.names}
        return Manifest(self._engine.generation, domains).to_document()

    def _version(self, name: str) -> StackVersion:
        return StackVersion(1, f"digest-{name}", 100, 1_700_000_000, rounds=2, rank=4, experts=4)

    async def stored(self) -> Manifest:
        return Manifest(self._engine.generation)

    async def follow(self, seconds: float) -> None:
        await asyncio.Event().wait()

    async def publish(
        self,
        domain: str,
        file: Path,
        *,
        expected_generation: int | None = None,
        before: Manifest | None = None,
    ) -> Published:
        published = await self._publish(domain, file, expected_generation, before)
        if domain not in self._engine.names:
            self._engine.names.append(domain)
            self._engine.versions[domain] = 1
        return published

    async def publish_router(
        self, file: Path, *, expected_generation: int | None = None, before: Manifest | None = None
    ) -> Published:
        return await self._publish("router", file, expected_generation, before)

    async def _publish(
        self, name: str, file: Path, expected: int | None, before: Manifest | None
    ) -> Published:
        if before is not None and before.generation != self._engine.generation:
            raise Conflict(f"Another writer changed {name!r} meanwhile; look at what it did")
        self._engine.upload_paths.append(file)
        if self._engine.refuse_publish is not None:
            raise self._engine.refuse_publish
        self._expect(expected)
        self._engine.uploads[name] = file.read_bytes()
        digest = hashlib.sha256(self._engine.uploads[name]).hexdigest()
        created = self._engine.digests.get(name) != digest
        self._engine.digests[name] = digest
        self._engine.generation += created
        return Published(name, 1, digest, self._engine.generation, created)

    async def activate(
        self, domain: str, version: int, *, expected_generation: int | None = None
    ) -> Published:
        self._expect(expected_generation)
        if version != 1:
            raise VersionNotFound(f"{self.domain(domain).domain!r} has no version {version}; it has 1")
        return Published(domain, version, f"digest-{domain}", self._engine.generation, False)

    async def activate_router(self, version: int, *, expected_generation: int | None = None) -> Published:
        self._expect(expected_generation)
        if version != 1:
            raise VersionNotFound(f"The router has no version {version}; it has 1")
        return Published("router", version, "digest-router", self._engine.generation, False)

    async def file(self, domain: str, version: int) -> tuple[Version, BinaryIO]:
        return self._file(self.domain(domain).domain, version)

    async def router_file(self, version: int) -> tuple[Version, BinaryIO]:
        return self._file("router", version)

    def _file(self, name: str, version: int) -> tuple[Version, BinaryIO]:
        if version != 1:
            raise VersionNotFound(f"{name!r} has no version {version}; it has 1")
        content = self._engine.uploads[name]
        found = Version(version, hashlib.sha256(content).hexdigest(), len(content), 0)
        self._engine.opened = io.BytesIO(content)
        return found, self._engine.opened

    async def delete(
        self, domain: str, *, purge: bool = False, expected_generation: int | None = None
    ) -> Published:
        self._expect(expected_generation)
        status = self.domain(domain)
        self._engine.names.remove(domain)
        self._engine.generation += 1
        return Published(domain, status.version, status.digest, self._engine.generation, False)

    def _expect(self, generation: int | None) -> None:
        if generation not in (None, self._engine.generation):
            raise StaleGeneration(
                f"The generation is {self._engine.generation}, not {generation}; read it again"
            )

    async def reload(self) -> int:
        return self._engine.generation

    async def pin(self, domain: str) -> DomainStatus:
        await self.load(domain)
        self._engine.pinned.add(domain)
        return self.domain(domain)

    async def unpin(self, domain: str) -> DomainStatus:
        self._engine.pinned -= {self.domain(domain).domain}
        return self.domain(domain)

    async def evict(self, domain: str) -> DomainStatus:
        status = self.domain(domain)
        if status.in_flight or status.pinned:
            raise Conflict(f"{domain} is in use or pinned; retry later")
        self._engine.tiers[domain] = "host"
        return self.domain(domain)

    async def load(self, domain: str) -> DomainStatus:
        self._engine.tiers[self.domain(domain).domain] = "device"
        return self.domain(domain)
