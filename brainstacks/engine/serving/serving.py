"""What is served: the active stack of every domain, and the router, as the registry has them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from functools import partial

from brainstacks import fresh_thread
from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.engine.request import Decider
from brainstacks.engine.serving.candidates import Candidates
from brainstacks.engine.serving.served_reader import ServedReader
from brainstacks.errors import BrainstacksError, Conflict, DomainNotFound, VersionNotFound
from brainstacks.layers.bank import StackBank
from brainstacks.routing.reader import Reader
from brainstacks.routing.router import Router
from brainstacks.stacks.cache_stats import CacheStats
from brainstacks.stacks.lease import Lease, ServedStack
from brainstacks.stacks.loader import Loader
from brainstacks.stacks.manifest import Manifest, StackVersion
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import NOT_ROUTED
from brainstacks.stacks.stack_cache import StackCache

log = logging.getLogger(__name__)


class Serving:
    """Args:
    registry: None serves the base alone.
    config: budgets of device and host.

    Attributes:
        cache: where the stacks are.
        candidates: what may come to be served.
        registry_problem: why changes of the registry do not get through, if they do not.
        reading: what reads prompts for their routes.
    """

    def __init__(self, base: BaseModel, registry: Registry | None, config: EngineConfig) -> None:
        self._registry = registry
        self.registry_problem: str | None = None
        bank = StackBank(base.device, base.dtype, config.host_stack_bytes, base.parts)
        budget = config.device_stack_bytes
        self.candidates = Candidates(base, registry, bank, budget)
        self.cache = StackCache(bank, self.candidates.read, budget, config.host_stack_bytes)
        self.reading = ServedReader(base, self.candidates)
        self._changing = threading.Lock()  # one change of what is served at a time
        self._discards = Loader()
        self._refused: dict[str, str] = {}
        self.sync()

    @property
    def generation(self) -> int:
        """The registry's manifest number; 0 without a registry."""
        return self._registry.generation if self._registry is not None else 0

    @property
    def problems(self) -> tuple[str, ...]:
        """What is active in the registry and cannot be served, and why."""
        outdated = self._registry.outdated if self._registry is not None else None
        registry = dict.fromkeys(filter(None, (outdated, self.registry_problem)))
        return (*self.stack_problems, *self.reading.problems, *registry)

    @property
    def reader(self) -> Reader:
        """What reads prompts now."""
        return self.reading.reader

    @property
    def router(self) -> Router | None:
        """The one in force, None where there is none."""
        return self.reader.router

    @property
    def stack_problems(self) -> tuple[str, ...]:
        """Active stacks that cannot be served, or whose last load failed, and why."""
        failed = [_problem(*key, text) for key, text in self.cache.failures().items()]
        return (*self._refused.values(), *failed)

    def routed_by(self, domain: str) -> Decider | None:
        """Who decides in routed requests on the very stack that is served for `domain`; None: nobody."""
        stack = self.cache.serving.get(domain)
        return None if stack is None else self.reader.decides(domain, stack.digest)

    @property
    def unrouted(self) -> tuple[str, ...]:
        """What routed requests leave out, where anything is routed, and why."""
        left_out = [d for d in self.cache.serving if self.reader.can_read and self.routed_by(d) is None]
        return tuple(f"{domain}: {NOT_ROUTED}" for domain in left_out)

    def require_version(self, domain: str, wanted: int | str) -> None:
        """Raises DomainNotFound, VersionNotFound: the registry has no such version, by number or digest."""
        if self._registry is not None:
            history = self._registry.snapshot().domain(domain)
            if isinstance(wanted, int):
                history.version(wanted)
            elif history.find(wanted) is None:
                raise VersionNotFound(f"no version of {domain} has the digest {wanted[:64]}")

    def stats(self) -> CacheStats:
        versions = self._registry.snapshot().versions() if self._registry is not None else []
        files = {v.digest: v.bytes for v in versions if isinstance(v, StackVersion)}
        return self.cache.stats(sum(files.values()))

    # --- what the registry says -------------------------------------------------------------------

    def sync(self) -> None:
        """Serve what the registry's manifest says is active, and nothing else; not on the engine's thread.

        New versions are brought to the device where there is room. One that is corrupt, does not fit the
        base or the device's budget, or fails its trial is named in `problems`; the domain's last good
        version, where there is one, goes on serving.
        """
        if self._registry is None:
            return
        with self._changing:
            manifest = self._registry.snapshot()
            new, refused = self._new_versions(manifest)
            # Before they are served, so that no request waits; as far as there is room beside the old ones.
            leases = self.cache.prefetch(new.values())
            for lease, error in _failed(leases):
                for stack in lease.stacks.values():
                    refused[stack.domain] = _problem(*stack.key, error.message)
                    del new[stack.domain]
            candidates = {**self.cache.serving, **new}
            self._serve({name: candidates[name] for name in manifest.domains if name in candidates})
            self._refused = refused
            leases += self.cache.prefetch(new.values())  # now the old ones have left
            _failed(leases)  # waits; what failed is in `problems`
            for lease in leases:
                self.cache.release(lease)
            self.reading.sync_router(manifest)

    def try_all(self) -> None:
        """Try what came to be served before there was an engine to try it; what fails is served no more, and
        named in `problems` until the next `sync`."""
        with self._changing:
            sound = {}
            for domain, stack in self.cache.serving.items():
                try:
                    self.candidates.check_served(stack)
                    sound[domain] = stack
                except BrainstacksError as error:
                    self._refused[domain] = _problem(*stack.key, error.message)
            self._serve(sound)
            self.reading.try_router()

    def load(self, domain: str) -> None:
        """Serve the registry's active version of `domain`, and wait until it is on the device.

        Raises:
            DomainNotFound, CorruptBlob, IncompatibleArtifact, ArtifactTooLarge
            InvalidRequest: it does not fit beside the stacks that are pinned.
        """
        with self._changing:
            if self._registry is None:
                raise DomainNotFound(f"no domain {domain!r}: this model was loaded without a registry")
            manifest = self._registry.snapshot()
            active = manifest.domain(domain).current
            if not self._is_served(domain, active):
                serving = {**self.cache.serving, domain: self.candidates.version(domain, active)}
                self._serve({name: serving[name] for name in manifest.domains if name in serving})
        self._bring(domain)

    def unload(self, domain: str) -> None:
        """Stop serving `domain` in this process; the registry keeps it. Raises DomainNotFound."""
        with self._changing:
            self.cache.served(domain)
            self._serve({name: stack for name, stack in self.cache.serving.items() if name != domain})

    def purge(self, domain: str, versions: Iterable[StackVersion]) -> None:
        """Delete the files of versions that are not served any more, and wait for that; of those in use, when
        that ends. No load waits for it. Raises what `Registry.discard` does."""
        if self._registry is None:
            return
        going: list[Future[None]] = []

        def discard(registry: Registry, digest: str) -> None:
            going.append(self._discards.submit(lambda: registry.discard([digest])))

        for version in versions:
            job = partial(discard, self._registry, version.digest)
            self.cache.when_gone((domain, version.version), job)
        for each in tuple(going):
            each.result()

    # --- where stacks are -------------------------------------------------------------------------

    def pin(self, domain: str) -> None:
        """Keep the active version of `domain` on the device from now on; waits until it is there.

        Raises:
            DomainNotFound: it is not served.
            Conflict: it does not fit beside the stacks that are pinned already.
            CorruptBlob: it cannot be loaded.
        """
        with self._changing:
            stack, pinned = self.cache.served(domain), self.cache.pinned
            if not self._fit(pinned | {domain}):
                raise Conflict(
                    f"{domain} takes {stack.nbytes} bytes on the device and does not fit there beside the "
                    f"pinned {', '.join(sorted(pinned))}; --device-stack-bytes is "
                    f"{self.cache.device_bytes}; unpin one of them"
                )
            self.cache.serve(self.cache.serving, pinned | {domain})
        try:
            self._bring(domain)
        except BrainstacksError:
            self.unpin(domain)
            raise

    def unpin(self, domain: str) -> None:
        """Let `domain` leave the device when others need its room. Raises DomainNotFound."""
        with self._changing:
            self.cache.served(domain)
            self.cache.serve(self.cache.serving, self.cache.pinned - {domain})

    def evict(self, domain: str) -> None:
        """Make `domain` leave the device, for host memory or for disk, until a request needs it.

        Raises:
            DomainNotFound: it is not served.
            Conflict: it is in use or pinned.
        """
        with self._changing:
            stack = self.cache.served(domain)
            if domain in self.cache.pinned:
                raise Conflict(f"{domain} is pinned to the device; unpin it first")
            if not self.cache.evict(domain):
                raise Conflict(
                    f"{domain} version {stack.version} is in use; retry when its requests are done"
                )

    # --- inside -----------------------------------------------------------------------------------

    def _serve(self, serving: Mapping[str, ServedStack]) -> None:
        """A pin follows its domain to its new version, where that fits."""
        pinned: list[str] = []
        for domain, stack in serving.items():
            if domain in self.cache.pinned:
                if self._fit([*pinned, domain], serving):
                    pinned.append(domain)
                else:
                    log.warning("%s version %d has grown and is pinned no more", domain, stack.version)
        self.cache.serve(serving, pinned)
        self.reading.serve(serving)
        for domain in pinned:
            if self.cache.tier(domain) != "device":
                fresh_thread.start(partial(self._bring, domain), "pin")

    def _fit(self, domains: Iterable[str], serving: Mapping[str, ServedStack] | None = None) -> bool:
        """Whether these can be on the device together."""
        stacks = serving or self.cache.serving
        budget = self.cache.device_bytes
        return budget is None or sum(stacks[domain].nbytes for domain in domains) <= budget

    def _bring(self, domain: str) -> None:
        """Wait until the served version is on the device."""
        lease = self.cache.acquire([domain])
        try:
            lease.wait()
        finally:
            self.cache.release(lease)

    def _is_served(self, domain: str, version: StackVersion) -> bool:
        stack = self.cache.serving.get(domain)
        return stack is not None and (stack.version, stack.digest) == (version.version, version.digest)

    def _new_versions(self, manifest: Manifest) -> tuple[dict[str, ServedStack], dict[str, str]]:
        """Active versions that are not served yet; and, per domain, why one cannot be."""
        new: dict[str, ServedStack] = {}
        refused: dict[str, str] = {}
        for domain, history in manifest.domains.items():
            if not self._is_served(domain, history.current):
                try:
                    new[domain] = self.candidates.version(domain, history.current)
                except BrainstacksError as error:
                    refused[domain] = _problem(domain, history.current.version, error.message)
        return new, refused


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
