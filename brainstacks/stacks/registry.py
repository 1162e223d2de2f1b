"""The registry: versions, atomic publication, compare-and-set, rollback, integrity. No torch here.

Writers take the store's lock, read the manifest, and replace it as a whole; readers take nothing. Several
processes may share one registry: each sees the others' changes when it calls `reload`, which `changed` tells.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brainstacks.errors import (
    ConfigError,
    Conflict,
    InvalidArtifact,
    StaleGeneration,
)
from brainstacks.stacks.artifact import STACK, StackFile, check_domain_name
from brainstacks.stacks.envelope import CheckedFile
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
from brainstacks.stacks.store import LocalStore, Store


class Registry:
    """The durable, versioned store of domain stacks and meta-routers.

    Args:
        root: its directory; one without a manifest is an empty registry.
        create: make the directory when there is none.

    Raises:
        ConfigError: there is no such directory.
        CorruptBlob: the manifest is damaged.
    """

    def __init__(self, root: str | Path, *, create: bool = False) -> None:
        root = Path(root)
        if root.exists() and not root.is_dir():
            raise ConfigError(f"{root} is no directory, so no registry; name another place")
        if create:
            root.mkdir(parents=True, exist_ok=True)
        if not root.is_dir():
            raise ConfigError(
                f"there is no registry directory {root}; name an existing one, or publish to make one"
            )
        self._store: Store = LocalStore(root)
        self._guard = threading.Lock()  # orders adoptions of a manifest among threads
        self.reload()

    # reading

    def snapshot(self) -> Manifest:
        """The manifest as this object last saw it."""
        return self._manifest

    @property
    def generation(self) -> int:
        """The snapshot's manifest number."""
        return self._manifest.generation

    def reload(self) -> Manifest:
        """Adopt and return the manifest that is stored now. Raises CorruptBlob; the old one then stays."""
        with self._guard:
            stamp = self._store.manifest_stamp()  # before: what is written meanwhile is seen next time
            self._manifest, self._stamp = self.stored(), stamp
            return self._manifest

    def stored(self) -> Manifest:
        """The manifest that is stored now; this object goes on with its own. Raises CorruptBlob."""
        content = self._store.read_manifest()
        return Manifest() if content is None else Manifest.from_bytes(content)

    def changed(self) -> bool:
        """Whether another process has written since the last `reload`; only looks at the file's name."""
        return self._store.manifest_stamp() != self._stamp

    def total_bytes(self) -> int:
        """Bytes of everything stored, versions that nothing references included."""
        return self._store.total_bytes()

    def blob_path(self, digest: str, *, anew: bool = False) -> Path:
        """Path of the file with this digest, verified. As `Store.verified`."""
        return self._store.verified(digest, anew=anew)

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
        now = self._unchanged(expected_generation)
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
        entry = domain_entry(name)
        with self._writing(expected_generation) as manifest:
            new = StackVersion(
                manifest.next_version(name), stack.digest, stack.bytes, int(time.time()), **facts
            )
            return self._add(entry, entry.get(before or now), manifest, stack, new)

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
        now = self._unchanged(expected_generation)
        router = ROUTER.inspect(file, keep=True)
        if check is not None:
            check(router)
        with self._writing(expected_generation) as manifest:
            check_routed(router.metadata, manifest.domains)
            last = manifest.router.last_version if manifest.router else 0
            new = Version(last + 1, router.digest, router.bytes, int(time.time()))
            return self._add(ROUTER_ENTRY, (before or now).router, manifest, router, new)

    def activate(self, domain: str, version: int, *, expected_generation: int | None = None) -> Published:
        """Make a published version of `domain` serve: roll back or forward.

        Raises:
            DomainNotFound, VersionNotFound: there is no such version.
            CorruptBlob: its stored bytes are damaged.
            StaleGeneration: the registry is not at `expected_generation`.
        """
        with self._writing(expected_generation) as manifest:
            return self._activate(domain_entry(domain), manifest, manifest.domain(domain), version)

    def activate_router(self, version: int, *, expected_generation: int | None = None) -> Published:
        """Make a published version of the router serve.

        Raises:
            NotFound: there is no router.
            IncompatibleArtifact: it routes to domains that the registry does not have any more.
            VersionNotFound, CorruptBlob, StaleGeneration: as `activate`.
        """
        with self._writing(expected_generation) as manifest:
            digest = manifest.routers().version(version).digest
            check_routed(read_router_metadata(self.blob_path(digest)), manifest.domains)
            return self._activate(ROUTER_ENTRY, manifest, manifest.routers(), version)

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
        with self._writing(expected_generation) as manifest:
            history = manifest.domain(domain)
            manifest = self._commit(manifest.without_domain(domain))
            if purge:
                self._discard(manifest, (version.digest for version in history.versions))
        return Published.of(domain, history, manifest.generation)

    def discard(self, digests: Iterable[str]) -> int:
        """Delete the stored bytes of those `digests` that no version references; bytes freed."""
        with self._writing(None) as manifest:
            return self._discard(manifest, digests)[1]

    def prune(self, keep: int | None = None) -> Pruned:
        """Delete stored bytes that no version references.

        Args:
            keep: where given, first drop all versions but the serving one and each name's newest `keep`.

        A process that serves an older generation may still need a dropped version: reload it first.
        """
        if keep is not None and keep < 0:
            raise ConfigError(f"keep is {keep}; it is the number of versions to keep, at least 0")
        with self._writing(None) as manifest:
            before = len(manifest.versions())
            if keep is not None and (following := manifest.pruned(keep)) != manifest:
                manifest = self._commit(following)
            blobs, freed = self._discard(manifest, self._store.digests())
        return Pruned(before - len(manifest.versions()), blobs, freed)

    # inside

    def _unchanged(self, expected_generation: int | None) -> Manifest:
        """The stored manifest, at that generation where one is expected."""
        manifest = self.stored()
        if expected_generation is not None and expected_generation != manifest.generation:
            raise StaleGeneration(
                f"the registry is at generation {manifest.generation}, not {expected_generation}; look at "
                "what changed, then try again with the new number"
            )
        return manifest

    @contextmanager
    def _writing(self, expected_generation: int | None) -> Iterator[Manifest]:
        with self._store.lock():
            yield self._unchanged(expected_generation)

    def _add(
        self, entry: Entry[V], before: History[V] | None, manifest: Manifest, file: CheckedFile[Any], new: V
    ) -> Published:
        """Store `file` and have it serve; it is taken out again when that fails."""
        now = entry.get(manifest)
        if before != now and (now is None or now.current.digest != file.digest):
            raise Conflict(
                f"another writer changed {entry.name!r} meanwhile; look at what it did, then publish again"
            )
        try:
            self._store.put((file.header.raw, file.data or b""), file.digest)
            following = now.published(new) if now else History(new.version, new.version, (new,))
            return self._follow(entry, manifest, following, created=following.active == new.version)
        except BaseException:
            self._discard(self.stored(), [file.digest])
            raise

    def _activate(self, entry: Entry[V], manifest: Manifest, history: History[V], version: int) -> Published:
        following = history.activated(version)
        self.blob_path(following.current.digest)
        return self._follow(entry, manifest, following, created=False)

    def _follow(
        self, entry: Entry[V], manifest: Manifest, following: History[V], *, created: bool
    ) -> Published:
        """Commit `following`, where it is a change."""
        if following != entry.get(manifest):
            manifest = self._commit(entry.put(manifest, following))
        return Published.of(entry.name, following, manifest.generation, created=created)

    def _commit(self, manifest: Manifest) -> Manifest:
        manifest = dataclasses.replace(manifest, generation=manifest.generation + 1)
        with self._guard:
            self._store.write_manifest(manifest.to_bytes())
            self._manifest, self._stamp = manifest, self._store.manifest_stamp()
        return manifest

    def _discard(self, manifest: Manifest, digests: Iterable[str]) -> tuple[int, int]:
        unreferenced = set(digests) - manifest.referenced()
        freed = [self._store.delete(digest) for digest in sorted(unreferenced)]
        return sum(size > 0 for size in freed), sum(freed)
