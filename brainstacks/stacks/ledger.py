"""A registry's manifest, as it is stored and as this process knows it: compared and set. No torch here.

A change reads the manifest and replaces it as a whole if it is still that one; where another writer was
faster, it is made again on what that one left.
"""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from brainstacks.errors import Conflict, CorruptBlob, StaleGeneration, Unavailable
from brainstacks.stacks.manifest import Manifest
from brainstacks.stacks.store import Stamp, Store, Superseded

T = TypeVar("T")

PAUSES = (0.0, 0.1, 0.2, 0.4, 0.8, *[1.6] * 15)
"""Seconds, at most, before a change is made again that another writer was faster than; then it is given
up."""

_UNSEEN = object()
"""Stamp of a manifest that was not read where it is stored."""


@dataclass(frozen=True)
class Stored:
    """A manifest as it was read, and the stamp by which it is replaced if it is still that one."""

    manifest: Manifest
    stamp: Stamp


class Ledger:
    """Args:
    store: where the manifest is.
    last_known: where that cannot be reached, begin with the manifest as this machine last saw it.

    Attributes:
        manifest: as this process last saw it.
        outdated: that it was not read where it is stored, and why; None once it was.
        unreached: a file could not be reached since.

    Raises:
        CorruptBlob: the manifest is damaged.
        Unavailable: it cannot be reached.
    """

    def __init__(self, store: Store, *, last_known: bool = False) -> None:
        self._store = store
        self._guard = threading.Lock()  # orders adoptions of a manifest among threads
        self.unreached = False
        self.outdated: str | None = None
        try:
            self.reload()
        except Unavailable as error:
            last = store.last_manifest() if last_known else None
            if last is None:
                raise
            self._adopt(Stored(Manifest.from_bytes(last), _UNSEEN))
            seen = f"generation {self.manifest.generation} is served, the last that was seen here"
            self.outdated = f"{seen}: {error.message}"

    def read(self) -> Stored:
        """What is stored now; this object goes on with its own. Raises CorruptBlob."""
        content, stamp = self._store.read_manifest()
        return Stored(Manifest() if content is None else Manifest.from_bytes(content), stamp)

    def reload(self) -> Manifest:
        """Adopt and return what is stored now. Raises CorruptBlob; the old one then stays."""
        with self._guard:
            self._adopt(self.read())
            self.outdated, self.unreached = None, False
            return self.manifest

    def changed(self) -> bool:
        """Whether to `reload`: another process has written since, or what could not be reached now may be.
        It only looks at the manifest's stamp."""
        return self._store.manifest_stamp() != self._stamp or self.unreached

    def expected(self, generation: int | None) -> Stored:
        """What is stored now, at that generation where one is expected. Raises StaleGeneration."""
        stored = self.read()
        if generation is not None and generation != stored.manifest.generation:
            raise StaleGeneration(
                f"the registry is at generation {stored.manifest.generation}, not {generation}; look at what "
                "changed, then try again with the new number"
            )
        return stored

    def change(self, change: Callable[[Stored], T], generation: int | None = None) -> T:
        """Do `change` to what is stored; all of it again where another writer was faster.

        Args:
            change: ends with `commit`, or changes nothing.
            generation: the one that is expected.

        Raises:
            StaleGeneration: it is another one.
            Conflict: others were faster every time.
            StorageFull, StorageUnwritable, Unavailable
        """
        for pause in PAUSES:
            with self._store.writing():
                stored = self.expected(generation)
                try:
                    return change(stored)
                except Superseded:
                    pass
            time.sleep(random.uniform(0, pause))
        raise Conflict("other writers keep changing the registry; nothing was changed, try again")

    def commit(self, stored: Stored, following: Manifest) -> Manifest:
        """Replace `stored` by `following`, where that is another, a generation later, and adopt it.

        Raises:
            Superseded: it is not what is stored any more.
        """
        if following == stored.manifest:
            return following
        manifest = dataclasses.replace(following, generation=stored.manifest.generation + 1)
        with self._guard:
            stamp = self._store.replace_manifest(manifest.to_bytes(), stored.stamp)
            self._adopt(Stored(manifest, stamp))
        return manifest

    def discard(self, digests: Iterable[str]) -> dict[str, int]:
        """Delete the stored bytes of those that no version references: digest -> bytes freed.

        Raises:
            CorruptBlob: one came to be referenced while its bytes were deleted.
        """
        wanted = frozenset(digests)
        freed = self.change(lambda now: self._store.delete(wanted - now.manifest.referenced(), now.stamp))
        if freed and (lost := freed.keys() & self.read().manifest.referenced()):
            raise CorruptBlob(
                f"{', '.join(sorted(lost))} was published while its bytes were deleted; publish it again"
            )
        return freed

    def _adopt(self, stored: Stored) -> None:
        self.manifest, self._stamp = stored.manifest, stored.stamp
