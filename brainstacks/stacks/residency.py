"""Which stack versions are on the device, and who uses them.

A version that a running request started with stays until the request ends, whatever is published,
replaced or deleted meanwhile. Changes of the bank are made on threads of their own, so that neither loading
nor dropping a stack ever holds up a step; a step takes the bank that is current when it starts.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from brainstacks import fresh_thread
from brainstacks.base_model import BaseModel
from brainstacks.errors import BrainstacksError, DomainNotFound
from brainstacks.layers.bank import Key, StackBank, StackTensors
from brainstacks.stacks.artifact import StackMetadata, check_base, read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack_tensors

log = logging.getLogger(__name__)

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
        self._changing = threading.Lock()  # one change of the bank at a time, each on a thread of its own
        self._lock = threading.Lock()  # guards what follows; held for bookkeeping only, never while packing
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
        """Undo one `acquire`; a version that nobody serves or uses any more leaves the device, soon."""
        with self._lock:
            for resident in residents:
                self._in_use[resident.key] -= 1
                if self._in_use[resident.key] <= 0:
                    del self._in_use[resident.key]
            unused = self._unused()
        if unused:
            self._start(self._drop_unused).add_done_callback(_log_failure)

    def sync(self) -> None:
        """Serve what the registry's manifest says is active, and nothing else.

        A version that is corrupt or does not fit is named in `problems`; the domain's last good version,
        where one is resident, goes on serving.
        """
        self._change(self._sync)

    def load(self, domain: str) -> None:
        """Serve the registry's active version of `domain`.

        Raises:
            DomainNotFound, CorruptBlob, IncompatibleArtifact
        """
        self._change(lambda: self._load_one(domain))

    def unload(self, domain: str) -> None:
        """Stop serving `domain` in this process; the registry keeps it. Raises DomainNotFound."""
        self._change(lambda: self._unload(domain))

    def settle(self) -> None:
        """Wait until versions that nobody serves or uses have left the device."""
        self._change(lambda: None)

    def _change(self, change: Callable[[], None]) -> None:
        """Make a change, and wait until it is made."""

        def run() -> None:
            change()
            self._drop_unused()

        self._start(run).result()

    def _start(self, change: Callable[[], None]) -> Future[None]:
        def run() -> None:
            with self._changing:
                change()

        return fresh_thread.start(run, "residency")

    # --- on a thread of its own, under `_changing` ------------------------------------------------

    def _sync(self) -> None:
        if self._registry is None:
            return
        serving: dict[str, Resident] = {}
        problems: dict[str, str] = {}
        for domain, history in self._registry.snapshot().domains.items():
            active = history.current
            resident = self._serving.get(domain)
            if resident is None or (resident.version, resident.digest) != (active.version, active.digest):
                try:
                    resident = self._load(domain, active.version, active.digest)
                except BrainstacksError as error:
                    problems[domain] = f"{domain} version {active.version}: {error.message}"
            if resident is not None:
                serving[domain] = resident
        with self._lock:
            self._serving, self._problems = serving, problems

    def _load_one(self, domain: str) -> None:
        if self._registry is None:
            raise DomainNotFound(f"no domain {domain!r}: this model was loaded without a registry")
        manifest = self._registry.snapshot()
        active = manifest.domain(domain).current
        resident = self._load(domain, active.version, active.digest)
        with self._lock:
            serving = {**self._serving, domain: resident}
            self._serving = {name: serving[name] for name in manifest.domains if name in serving}

    def _unload(self, domain: str) -> None:
        with self._lock:
            if domain not in self._serving:
                raise DomainNotFound(
                    f"no domain {domain!r} is served; served are: {', '.join(self._serving)}"
                )
            self._serving = {name: r for name, r in self._serving.items() if name != domain}

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
            # Only the holder of `_changing` writes; readers see the old bank or the new.
            self._bank = self._bank.plus(resident.key, stack)
        return resident

    def _drop_unused(self) -> None:
        while True:
            with self._lock:
                unused, bank = self._unused(), self._bank
            if not unused:
                return
            self._bank = bank.minus(unused[0])

    def _unused(self) -> list[Key]:
        """Resident versions that are neither served nor in use; nothing can acquire them any more."""
        keep = {r.key for r in self._serving.values()} | set(self._in_use)
        return [key for key in self._bank.keys if key not in keep]


def _log_failure(done: Future[None]) -> None:
    """Nobody waits for this change: say what went wrong with it."""
    error = done.exception()
    if error is not None:
        log.error("a stack could not be dropped from the device", exc_info=error)
