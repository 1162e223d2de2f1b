"""The registry: versions, atomic publication, compare-and-set, rollback, integrity. No torch here.

Writers replace the manifest as a whole; readers take nothing. Several processes may share one registry: each
sees the others' changes when it calls `reload`, which `changed` tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from brainstacks.errors import ConfigError, Conflict, InvalidArtifact, Unavailable
from brainstacks.stacks.artifact import STACK, StackFile, check_domain_name
from brainstacks.stacks.blob_cache import BlobCache
from brainstacks.stacks.envelope import CheckedFile
from brainstacks.stacks.ledger import Ledger, Stored
from brainstacks.stacks.location import open_store
from brainstacks.stacks.manifest import (
    ROUTER_ENTRY,
    Entry,
    History,
    Manifest,
    Pruned,
    Published,
    StackVersion,
    V,
    Version,
    domain_entry,
)
from brainstacks.stacks.router_artifact import ROUTER, RouterFile, check_routed, read_router_metadata


class Registry:
    """The durable, versioned store of domain stacks and meta-routers.

    Args:
        root: its directory, or the URL of a bucket or of a repository (`location.open_store`). A place
            without a manifest is an empty registry.
        create: make the directory when there is none.
        cache: where files from elsewhere are kept; by default under the user's cache.
        last_known: where the registry cannot be reached, go on with its manifest as this machine last saw it.

    Raises:
        ConfigError: there is no such place, or it cannot be used so.
        CorruptBlob: the manifest is damaged.
        Unavailable: it cannot be reached.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        create: bool = False,
        cache: BlobCache | None = None,
        last_known: bool = False,
    ) -> None:
        self._store = open_store(root, create=create, cache=cache)
        self._ledger = Ledger(self._store, last_known=last_known)

    # reading

    def snapshot(self) -> Manifest:
        """The manifest as this object last saw it."""
        return self._ledger.manifest

    @property
    def generation(self) -> int:
        """The snapshot's manifest number."""
        return self.snapshot().generation

    @property
    def outdated(self) -> str | None:
        """Why the snapshot is only the last known one; None once the registry was read."""
        return self._ledger.outdated

    def reload(self) -> Manifest:
        """Adopt and return the manifest that is stored now. Raises CorruptBlob; the old one then stays."""
        return self._ledger.reload()

    def stored(self) -> Manifest:
        """The manifest that is stored now; this object goes on with its own. Raises CorruptBlob."""
        return self._ledger.read().manifest

    def changed(self) -> bool:
        """Whether to `reload`: another process has written since, or what could not be reached now may be."""
        return self._ledger.changed()

    def total_bytes(self) -> int:
        """Bytes of everything stored, versions that nothing references included."""
        return self._store.total_bytes()

    def blob_path(self, digest: str, *, anew: bool = False) -> Path:
        """Path of the file with this digest, verified. As `Store.verified`."""
        try:
            return self._store.verified(digest, anew=anew)
        except Unavailable:
            self._ledger.unreached = True
            raise

    # changing

    def publish(
        self,
        file: Path,
        *,
        domain: str | None = None,
        expected_generation: int | None = None,
        before: Manifest | None = None,
        check: Callable[[StackFile], object] | None = None,
    ) -> Published:
        """Make a stack file the newest, serving version of its domain. `file` is read once, and left alone.

        Bytes that serve already change nothing; bytes of an older version make it serve again; in both cases
        `created` is False. A damaged stored copy of the same bytes is repaired.

        Args:
            file: the stack file; its metadata names the domain.
            domain: the domain that the caller means; another one in the file is refused.
            expected_generation: refuse if the registry is at another one.
            before: what was stored when the caller began, say, to receive the file; None means now.
            check: called with the file, in memory; raises to refuse it (`artifact.check_base`).

        Raises:
            InvalidArtifact: the file is not a sound stack, or of another domain.
            StaleGeneration: the registry is not at `expected_generation`.
            Conflict: another writer changed this domain since `before`.
            StorageFull, StorageUnwritable: it cannot be written; nothing has changed.
        """
        if domain is not None:
            check_domain_name(domain)
        now = self._ledger.expected(expected_generation).manifest
        stack = STACK.inspect(file, keep=True)
        name, config = stack.metadata.domain, stack.metadata.config
        if domain is not None and domain != name:
            raise InvalidArtifact(
                f"the file is a stack of {name!r}; publish it under that name, not as {domain!r}",
                param="domain",
            )
        if check is not None:
            check(stack)
        facts = {"rounds": stack.metadata.rounds, "rank": config.rank, "experts": config.experts}

        def version(manifest: Manifest) -> StackVersion:
            number = manifest.next_version(name)
            return StackVersion(number, stack.digest, stack.bytes, int(time.time()), **facts)

        return self._publish(domain_entry(name), stack, version, before or now, expected_generation)

    def publish_router(
        self,
        file: Path,
        *,
        expected_generation: int | None = None,
        before: Manifest | None = None,
        check: Callable[[RouterFile], object] | None = None,
    ) -> Published:
        """Make a router file the newest, serving router; otherwise as `publish`.

        Raises:
            IncompatibleArtifact: it routes to domains that the registry does not have.
            InvalidArtifact, StaleGeneration, Conflict, StorageFull, StorageUnwritable: as `publish`.
        """
        now = self._ledger.expected(expected_generation).manifest
        router = ROUTER.inspect(file, keep=True)
        if check is not None:
            check(router)

        def version(manifest: Manifest) -> Version:
            check_routed(router.metadata, manifest.domains)
            last = manifest.router.last_version if manifest.router else 0
            return Version(last + 1, router.digest, router.bytes, int(time.time()))

        return self._publish(ROUTER_ENTRY, router, version, before or now, expected_generation)

    def activate(self, domain: str, version: int, *, expected_generation: int | None = None) -> Published:
        """Make a published version of `domain` serve: roll back or forward.

        Raises:
            DomainNotFound, VersionNotFound: there is no such version.
            CorruptBlob: its stored bytes are damaged.
            StaleGeneration: the registry is not at `expected_generation`.
        """
        entry = domain_entry(domain)
        return self._ledger.change(
            lambda stored: self._activate(entry, stored, stored.manifest.domain(domain), version),
            expected_generation,
        )

    def activate_router(self, version: int, *, expected_generation: int | None = None) -> Published:
        """Make a published version of the router serve.

        Raises:
            NotFound: there is no router.
            IncompatibleArtifact: it routes to domains that the registry does not have any more.
            VersionNotFound, CorruptBlob, StaleGeneration: as `activate`.
        """

        def activate(stored: Stored) -> Published:
            history = stored.manifest.routers()
            path = self.blob_path(history.version(version).digest)
            check_routed(read_router_metadata(path), stored.manifest.domains)
            return self._activate(ROUTER_ENTRY, stored, history, version)

        return self._ledger.change(activate, expected_generation)

    def delete(
        self, domain: str, *, purge: bool = False, expected_generation: int | None = None
    ) -> Published:
        """Remove `domain` and all its versions from the manifest. Its version numbers are not given again.

        Args:
            purge: delete the stored bytes too. Without it they stay until `discard` or `prune`.

        Returns:
            The version that served.

        Raises:
            DomainNotFound: there is no such domain.
            StaleGeneration: the registry is not at `expected_generation`.
        """

        def delete(stored: Stored) -> tuple[History[StackVersion], Published]:
            history = stored.manifest.domain(domain)
            manifest = self._ledger.commit(stored, stored.manifest.without_domain(domain))
            return history, Published.of(domain, history, manifest.generation)

        history, published = self._ledger.change(delete, expected_generation)
        if purge:
            self.discard(version.digest for version in history.versions)
        return published

    def discard(self, digests: Iterable[str]) -> int:
        """Delete the stored bytes of those `digests` that no version references; bytes freed."""
        return sum(self._ledger.discard(digests).values())

    def prune(self, keep: int | None = None) -> Pruned:
        """Delete stored bytes that no version references. A process that serves an older generation may still
        need a version that is dropped: reload it first.

        Args:
            keep: where given, first drop all versions but the serving one and each name's newest `keep`.
        """
        if keep is not None and keep < 0:
            raise ConfigError(f"keep is {keep}; it is the number of versions to keep, at least 0")

        def drop(stored: Stored) -> int:
            kept = stored.manifest if keep is None else stored.manifest.pruned(keep)
            return len(stored.manifest.versions()) - len(self._ledger.commit(stored, kept).versions())

        dropped = self._ledger.change(drop)
        freed = self._ledger.discard(self._store.digests())
        return Pruned(dropped, len(freed), sum(freed.values()))

    def _publish(
        self,
        entry: Entry[V],
        file: CheckedFile[Any],
        version: Callable[[Manifest], V],
        before: Manifest,
        expected_generation: int | None,
    ) -> Published:
        """Store `file` and have it serve, as `version` of the manifest; when that fails it is taken out."""
        tried = False

        def put() -> None:
            nonlocal tried
            tried = True
            self._store.put((file.header.raw, file.data or b""), file.digest)

        def add(stored: Stored) -> Published:
            now = entry.get(stored.manifest)
            if entry.get(before) != now and (now is None or now.current.digest != file.digest):
                raise Conflict(f"another writer changed {entry.name!r}; look at what it did, then try again")
            new = version(stored.manifest)
            following = now.published(new) if now else History(new.version, new.version, (new,))
            if not tried:
                put()
            published = self._follow(entry, stored, following, created=following.active == new.version)
            if not self._store.has(file.digest):  # a prune came between the two
                put()
            return published

        try:
            return self._ledger.change(add, expected_generation)
        except BaseException as error:
            if tried and not isinstance(error, Unavailable):  # then nothing can be; `prune` will
                self.discard([file.digest])
            raise

    def _activate(self, entry: Entry[V], stored: Stored, history: History[V], version: int) -> Published:
        following = history.activated(version)
        self.blob_path(following.current.digest, anew=True)  # what is cached may be gone where it is stored
        return self._follow(entry, stored, following, created=False)

    def _follow(self, entry: Entry[V], stored: Stored, following: History[V], *, created: bool) -> Published:
        manifest = self._ledger.commit(stored, entry.put(stored.manifest, following))
        return Published.of(entry.name, following, manifest.generation, created=created)
