"""Which stack versions are on the device, and who uses them.

A version that a running request started with stays until the request ends, whatever is published,
replaced or deleted meanwhile. Loading packs a new bank off the step thread; a step takes the bank that is
current when it starts.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from brainstacks.base_model import BaseModel
from brainstacks.errors import BrainstacksError, DomainNotFound
from brainstacks.layers.bank import StackBank, StackTensors
from brainstacks.stacks.artifact import StackMetadata, check_base, read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack_tensors

StackKey = tuple[str, int]
"""(domain, version): what weights and residency are bound to."""


@dataclass(frozen=True)
class Resident:
    """One stack version on the device."""

    domain: str
    version: int
    digest: str
    metadata: StackMetadata

    @property
    def key(self) -> StackKey:
        return (self.domain, self.version)


class Residency:
    """Keeps the active version of every domain on the device.

    Args:
        registry: where versions come from; None serves the base alone.
        base: its device, dtype and identity.
    """

    def __init__(self, registry: Registry | None, base: BaseModel) -> None:
        self._registry = registry
        self._base = base
        self._lock = threading.Lock()  # guards what follows; held for bookkeeping only, never while packing
        self._packing = threading.Lock()  # one change of the bank at a time
        self._bank = StackBank(base.device, base.dtype)
        self._serving: dict[str, Resident] = {}
        self._in_use: Counter[StackKey] = Counter()
        self._problems: dict[str, str] = {}

    @property
    def bank(self) -> StackBank:
        """The bank of the moment; holds every version that is served or in use."""
        return self._bank

    @property
    def serving(self) -> Mapping[str, Resident]:
        """Domain -> the version that new requests get, in the registry's order."""
        return self._serving

    @property
    def problems(self) -> tuple[str, ...]:
        """Active versions that cannot be served, and why."""
        return tuple(self._problems.values())

    def in_use(self, domain: str) -> int:
        """Running completions that use any version of `domain`."""
        with self._lock:
            return sum(count for (name, _), count in self._in_use.items() if name == domain)

    def acquire(self, domains: Iterable[str]) -> dict[str, Resident]:
        """Pin the served version of each domain until `release`.

        Raises:
            DomainNotFound: a domain is not served; nothing is pinned.
        """
        with self._lock:
            chosen: dict[str, Resident] = {}
            for domain in domains:
                if domain not in self._serving:
                    served = ", ".join(self._serving) or "none"
                    raise DomainNotFound(f"no domain {domain!r} is served; served are: {served}")
                chosen[domain] = self._serving[domain]
            self._in_use.update(resident.key for resident in chosen.values())
            return chosen

    def release(self, residents: Iterable[Resident]) -> None:
        """Undo one `acquire`; a version that nobody serves or uses any more leaves the device."""
        with self._lock:
            for resident in residents:
                self._in_use[resident.key] -= 1
                if self._in_use[resident.key] <= 0:
                    del self._in_use[resident.key]
        self._drop_unused()

    def sync(self) -> None:
        """Serve what the registry's manifest says is active, and nothing else.

        A version that is corrupt or does not fit is named in `problems`; the domain's last good version,
        where one is resident, goes on serving.
        """
        if self._registry is None:
            return
        with self._packing:
            serving: dict[str, Resident] = {}
            problems: dict[str, str] = {}
            for domain, history in self._registry.snapshot().domains.items():
                active = history.current
                resident = self._serving.get(domain)
                if resident is None or resident.digest != active.digest or resident.version != active.version:
                    try:
                        resident = self._load(domain, active.version, active.digest)
                    except BrainstacksError as error:
                        problems[domain] = f"{domain} version {active.version}: {error.message}"
                if resident is not None:
                    serving[domain] = resident
            with self._lock:
                self._serving, self._problems = serving, problems
        self._drop_unused()

    def unload(self, domain: str) -> None:
        """Stop serving `domain` in this process; the registry keeps it. Raises DomainNotFound."""
        with self._packing, self._lock:
            if domain not in self._serving:
                raise DomainNotFound(
                    f"no domain {domain!r} is served; served are: {', '.join(self._serving)}"
                )
            self._serving = {name: r for name, r in self._serving.items() if name != domain}
        self._drop_unused()

    def load(self, domain: str) -> None:
        """Serve the registry's active version of `domain`.

        Raises:
            DomainNotFound, CorruptBlob, IncompatibleArtifact
        """
        if self._registry is None:
            raise DomainNotFound(f"no domain {domain!r}: this model was loaded without a registry")
        with self._packing:
            active = self._registry.snapshot().domain(domain).current
            resident = self._load(domain, active.version, active.digest)
            order = list(self._registry.snapshot().domains)
            with self._lock:
                serving = {**self._serving, domain: resident}
                self._serving = {name: serving[name] for name in order if name in serving}

    def _load(self, domain: str, version: int, digest: str) -> Resident:
        if self._registry is None:
            raise DomainNotFound(f"no domain {domain!r}: this model was loaded without a registry")
        path = self._registry.blob_path(digest)
        metadata = read_stack_metadata(path)
        identity = self._base.identity
        check_base(metadata, identity.fingerprint, identity.dims, identity.layers)
        resident = Resident(domain, version, digest, metadata)
        if resident.key not in self._bank.keys:
            stack = StackTensors(metadata.config, metadata.rounds, load_stack_tensors(path))
            bank = self._bank.plus(resident.key, stack)
            with self._lock:
                self._bank = bank
        return resident

    def _drop_unused(self) -> None:
        with self._packing:
            while True:
                with self._lock:
                    keep = {r.key for r in self._serving.values()} | set(self._in_use)
                    unused = [key for key in self._bank.keys if key not in keep]
                    bank = self._bank
                if not unused:
                    return
                smaller = bank.minus(unused[0])
                with self._lock:
                    if unused[0] not in self._in_use:
                        self._bank = smaller
