"""Which stack versions are served, where they are, and who uses them.

A version that a request started with stays until the request ends, whatever is published, replaced or
deleted meanwhile. `tiers` decides what is on the device and moves it there, off the caller's thread.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch

from brainstacks import fresh_thread
from brainstacks.base_model import BaseModel
from brainstacks.errors import ArtifactTooLarge, BrainstacksError, Conflict, DomainNotFound
from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import PackedStack, Shape, StackTensors
from brainstacks.stacks.artifact import StackMetadata, check_base, read_stack_metadata
from brainstacks.stacks.lease import Lease, Resident, StackKey
from brainstacks.stacks.manifest import Manifest, StackVersion
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.residency_stats import ResidencyStats, Tier
from brainstacks.stacks.tensors import load_stack
from brainstacks.stacks.tiers import Tiers

__all__ = ["Lease", "Residency", "Resident", "StackKey"]

log = logging.getLogger(__name__)


class Residency:
    """Serves the active version of every domain, from the device, from host memory or from disk.

    Args:
        registry: where versions come from; None serves the base alone.
        base: its device, dtype and identity.
        device_bytes: most bytes of stacks on the device; None keeps every served stack there.
        host_bytes: most bytes of packed stacks in host memory, for those that had to leave the device.
    """

    def __init__(
        self,
        registry: Registry | None,
        base: BaseModel,
        device_bytes: int | None = None,
        host_bytes: int = 0,
    ) -> None:
        self._registry = registry
        self._base = base
        self._tiers = Tiers(StackBank(base.device, base.dtype), self._read, device_bytes, host_bytes)
        self._changing = threading.Lock()  # one change of what is served at a time
        self._lock = threading.Lock()  # guards what follows; held for bookkeeping only
        self._serving: dict[str, Resident] = {}
        self._pinned: frozenset[str] = frozenset()
        self._in_use: Counter[StackKey] = Counter()
        self._purging: dict[StackKey, str] = {}  # deleted while in use: their files go when that ends
        self._refused: dict[str, str] = {}

    @property
    def bank(self) -> StackBank:
        """What is on the device; holds every stack of a lease that is ready."""
        return self._tiers.bank

    @property
    def serving(self) -> Mapping[str, Resident]:
        """Domain -> the version that new requests get, in the registry's order."""
        return self._serving

    @property
    def problems(self) -> tuple[str, ...]:
        """Active versions that cannot be served, or whose last load failed, and why."""
        failed = [_problem(*key, text) for key, text in self._tiers.failures().items()]
        return (*self._refused.values(), *failed)

    def tier(self, domain: str) -> Tier:
        """Where the served version of `domain` is; a domain that is not served is on disk."""
        resident = self._serving.get(domain)
        return "disk" if resident is None else self._tiers.tier(resident.key)

    def pinned(self, domain: str) -> bool:
        return domain in self._pinned

    def in_use(self, domain: str) -> int:
        """Unfinished requests that use any version of `domain`."""
        with self._lock:
            return sum(count for (name, _), count in self._in_use.items() if name == domain)

    def stats(self) -> ResidencyStats:
        versions = self._registry.snapshot().versions() if self._registry is not None else []
        files = {v.digest: v.bytes for v in versions if isinstance(v, StackVersion)}
        return self._tiers.stats(sum(files.values()))

    # --- requests ---------------------------------------------------------------------------------

    def acquire(self, domains: Iterable[str], on_change: Callable[[], None] | None = None) -> Lease:
        """Pin the served version of each domain until `release`, and start to load what is not on the device.

        Args:
            on_change: called once, on any thread, when the lease becomes ready or fails; not when it is ready
                already on return.

        Raises:
            DomainNotFound: a domain is not served.
            InvalidRequest: together they are larger than the device's budget.
            In either case nothing is pinned.
        """
        with self._lock:
            residents = {domain: self._served(domain) for domain in domains}
            lease = self._tiers.acquire(residents, on_change)
            self._in_use.update(lease.keys)
            return lease

    def release(self, lease: Lease) -> None:
        """Undo one `acquire`, once, also of a lease that failed.

        A version that nobody serves or uses any more goes, soon.
        """
        with self._lock:
            self._in_use -= Counter(lease.keys)
            done = [key for key in lease.keys if key in self._purging and key not in self._in_use]
            digests = [self._purging.pop(key) for key in done]
        self._tiers.release(lease)
        if digests:
            self._tiers.later(lambda: self._discard(digests))

    # --- what is served ---------------------------------------------------------------------------

    def sync(self) -> None:
        """Serve what the registry's manifest says is active, and nothing else.

        New versions are brought to the device where there is room. One that is corrupt, does not fit the
        base, or is larger than the device's budget is named in `problems`; the domain's last good version,
        where there is one, goes on serving.
        """
        if self._registry is None:
            return
        with self._changing:
            manifest = self._registry.snapshot()
            new, refused = self._new_versions(manifest)
            # Before they are served, so that no request waits; as far as there is room beside the old ones.
            leases = self._tiers.prefetch(new.values())
            for lease, error in _failed(leases):
                for resident in lease.residents.values():
                    refused[resident.domain] = _problem(*resident.key, error.message)
                    del new[resident.domain]
            candidates = {**self._serving, **new}
            self._serve({name: candidates[name] for name in manifest.domains if name in candidates}, refused)
            leases += self._tiers.prefetch(new.values())  # now the old ones have left
            _failed(leases)  # waits; what failed is in `problems`
            for lease in leases:
                self._tiers.release(lease)
            self._tiers.settle()

    def load(self, domain: str) -> None:
        """Serve the registry's active version of `domain`, and wait until it is on the device.

        Raises:
            DomainNotFound, CorruptBlob, IncompatibleArtifact, ArtifactTooLarge
            InvalidRequest: it does not fit beside the stacks that are pinned.
        """
        with self._changing:
            manifest = self._manifest(domain)
            active = manifest.domain(domain).current
            if not self._is_served(domain, active):
                serving = {**self._serving, domain: self._checked(domain, active)}
                self._serve({name: serving[name] for name in manifest.domains if name in serving})
        self._bring(domain)

    def unload(self, domain: str) -> None:
        """Stop serving `domain` in this process; the registry keeps it. Raises DomainNotFound."""
        with self._changing:
            self._served(domain)
            self._serve({name: r for name, r in self._serving.items() if name != domain})
        self._tiers.settle()

    def purge(self, domain: str, versions: Iterable[StackVersion]) -> None:
        """Delete the files of versions that are not listed any more; of those in use, when that ends."""
        digests = []
        with self._lock:
            for version in versions:
                key = (domain, version.version)
                if self._in_use[key] > 0:
                    self._purging[key] = version.digest
                else:
                    digests.append(version.digest)
        self._discard(digests)

    def check(self, metadata: StackMetadata) -> int:
        """Bytes that a stack takes on the device.

        Raises:
            IncompatibleArtifact: it was made for another base.
            ArtifactTooLarge: it is larger than the device's budget.
        """
        identity = self._base.identity
        check_base(metadata, identity.fingerprint, identity.dims, identity.layers)
        nbytes = packed_bytes(metadata, self._base.dtype)
        budget = self._tiers.device_bytes
        if budget is not None and nbytes > budget:
            raise ArtifactTooLarge(
                f"the stack takes {nbytes} bytes on the device and --device-stack-bytes is {budget}; "
                "publish a smaller one, or start the server with more room"
            )
        return nbytes

    # --- where it is ------------------------------------------------------------------------------

    def pin(self, domain: str) -> None:
        """Keep the active version of `domain` on the device from now on; waits until it is there.

        Raises:
            DomainNotFound: it is not served.
            Conflict: it does not fit beside the stacks that are pinned already.
            CorruptBlob: it cannot be loaded.
        """
        with self._changing:
            resident = self._served(domain)
            pinned = [self._serving[name] for name in self._pinned]
            if not self._fit([*pinned, resident]):
                raise Conflict(
                    f"{domain} takes {resident.nbytes} bytes on the device and does not fit there beside the "
                    f"pinned {', '.join(sorted(self._pinned))}; --device-stack-bytes is "
                    f"{self._tiers.device_bytes}; unpin one of them"
                )
            self._repin(self._pinned | {domain})
        try:
            self._bring(domain)
        except BrainstacksError:
            self.unpin(domain)
            raise

    def unpin(self, domain: str) -> None:
        """Let `domain` leave the device when others need its room. Raises DomainNotFound."""
        with self._changing:
            self._served(domain)
            self._repin(self._pinned - {domain})

    def evict(self, domain: str) -> None:
        """Make `domain` leave the device, for host memory or for disk, until a request needs it.

        Raises:
            DomainNotFound: it is not served.
            Conflict: it is in use or pinned.
        """
        with self._changing:
            resident = self._served(domain)
            if domain in self._pinned:
                raise Conflict(f"{domain} is pinned to the device; unpin it first")
            if self._in_use[resident.key] or not self._tiers.evict(resident.key):
                raise Conflict(
                    f"{domain} version {resident.version} is in use; retry when its requests are done"
                )

    def settle(self) -> None:
        """Wait until everything that was decided so far, such as what leaves the device, has happened."""
        self._tiers.settle()

    # --- inside -----------------------------------------------------------------------------------

    def _served(self, domain: str) -> Resident:
        if domain not in self._serving:
            served = ", ".join(self._serving) or "none"
            raise DomainNotFound(f"no domain {domain!r} is served; served are: {served}")
        return self._serving[domain]

    def _is_served(self, domain: str, version: StackVersion) -> bool:
        resident = self._serving.get(domain)
        return resident is not None and (resident.version, resident.digest) == (
            version.version,
            version.digest,
        )

    def _manifest(self, domain: str) -> Manifest:
        if self._registry is None:
            raise DomainNotFound(f"no domain {domain!r}: this model was loaded without a registry")
        return self._registry.snapshot()

    def _new_versions(self, manifest: Manifest) -> tuple[dict[str, Resident], dict[str, str]]:
        """Active versions that are not served yet; and, per domain, why one cannot be."""
        new: dict[str, Resident] = {}
        refused: dict[str, str] = {}
        for domain, history in manifest.domains.items():
            if not self._is_served(domain, history.current):
                try:
                    new[domain] = self._checked(domain, history.current)
                except BrainstacksError as error:
                    refused[domain] = _problem(domain, history.current.version, error.message)
        return new, refused

    def _checked(self, domain: str, version: StackVersion) -> Resident:
        """A version whose bytes were verified and that fits the base and the device."""
        metadata = read_stack_metadata(self._path(version.digest))
        return Resident(domain, version, metadata, self.check(metadata))

    def _path(self, digest: str) -> Path:
        if self._registry is None:
            raise DomainNotFound("this model was loaded without a registry")
        return self._registry.blob_path(digest)

    def _read(self, resident: Resident) -> StackTensors:
        return load_stack(self._path(resident.digest))

    def _serve(self, serving: dict[str, Resident], refused: dict[str, str] | None = None) -> None:
        """New requests get `serving`. A pin follows its domain to its new version, where that fits."""
        pinned: list[Resident] = []
        for domain, resident in serving.items():
            if domain in self._pinned:
                if self._fit([*pinned, resident]):
                    pinned.append(resident)
                else:
                    log.warning("%s version %d has grown and is pinned no more", domain, resident.version)
        with self._lock:
            self._serving = serving
            self._pinned = frozenset(resident.domain for resident in pinned)
            if refused is not None:
                self._refused = refused
        self._tiers.serve(serving.values(), pinned)
        for resident in pinned:
            if self._tiers.tier(resident.key) != "device":
                fresh_thread.start(partial(self._bring, resident.domain), "pin")

    def _repin(self, domains: frozenset[str]) -> None:
        with self._lock:
            self._pinned = domains
        self._tiers.serve(self._serving.values(), [self._serving[domain] for domain in sorted(domains)])

    def _fit(self, residents: Iterable[Resident]) -> bool:
        """Whether these can be on the device together."""
        budget = self._tiers.device_bytes
        return budget is None or sum({r.key: r.nbytes for r in residents}.values()) <= budget

    def _bring(self, domain: str) -> None:
        """Wait until the served version is on the device."""
        with self._lock:
            lease = self._tiers.acquire({domain: self._served(domain)})
        try:
            lease.wait()
        finally:
            self._tiers.release(lease)

    def _discard(self, digests: Iterable[str]) -> None:
        if self._registry is not None:
            self._registry.discard(digests)


def packed_bytes(metadata: StackMetadata, dtype: torch.dtype) -> int:
    """Bytes that a stack takes in the bank's layout; nothing is allocated."""
    config = metadata.config
    shape = Shape.of(config, metadata.dims)
    return PackedStack(shape, metadata.rounds, config.scaling, torch.device("meta"), dtype).nbytes


def _failed(leases: Iterable[Lease]) -> list[tuple[Lease, BrainstacksError]]:
    """Wait for all; those that failed."""
    failed = []
    for lease in leases:
        try:
            lease.wait()
        except BrainstacksError as error:
            failed.append((lease, error))
    return failed


def _problem(domain: str, version: int, message: str) -> str:
    return f"{domain} version {version}: {message}"
