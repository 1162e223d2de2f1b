"""Files of registries elsewhere, kept on this machine: whole, verified, and within a cap of bytes.

    <directory>/blobs/sha256/<digest>   came whole, and verified before it got this name
    <directory>/partial/<digest>        coming: held (flock) by who fetches it; goes on where it broke off
    <directory>/manifests/<name>        the manifest of each registry, as it was last seen

Processes share a cache. Past the cap the least recently used files go. One that is memory-mapped may go too:
its pages stay as long as the mapping (Linux), and it is fetched again when it is next opened.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from brainstacks.cache import cache_directory
from brainstacks.durable import (
    fsync_directory,
    make_directory,
    partial,
    replacing,
    storage_full,
    writable,
    write_file,
)
from brainstacks.errors import BrainstacksError, ConfigError, CorruptBlob, StorageFull
from brainstacks.stacks.blobs import Blobs
from brainstacks.stacks.store import ADVICE, BLOBS

log = logging.getLogger(__name__)

DEFAULT_BYTES = 16 << 30
PIECE = 8 << 20
"""Bytes that are asked for at a time: what a connection that breaks can lose."""

_FULL = "there is no room for {what} ({why}); free some, or name another directory with --registry-cache"


class Source(Protocol):
    """Where a file comes from. Both may raise Unavailable."""

    def size(self) -> int | None:
        """Of the file, in bytes; None where there is none."""

    def read(self, start: int, stop: int) -> memoryview:
        """Its bytes from `start` to before `stop`."""


class BlobCache:
    """Args:
    directory: made when something is first kept.
    most_bytes: of all files in it.
    """

    def __init__(self, directory: Path, most_bytes: int = DEFAULT_BYTES) -> None:
        self._blobs = Blobs(directory / BLOBS)
        self._partial = directory / "partial"
        self._manifests = directory / "manifests"
        self._most = most_bytes

    @classmethod
    def of_user(cls, directory: Path | None = None, most_bytes: int | None = None) -> BlobCache:
        """What is not given is BRAINSTACKS_REGISTRY_CACHE and ..._CACHE_BYTES; without these it is
        `registry` in the user's cache directory. Raises ConfigError: that is no number of bytes."""
        said = os.environ.get("BRAINSTACKS_REGISTRY_CACHE_BYTES") or str(DEFAULT_BYTES)
        if not said.isdecimal():
            raise ConfigError(f"BRAINSTACKS_REGISTRY_CACHE_BYTES is {said[:40]!r}; it is a number of bytes")
        where = directory or os.environ.get("BRAINSTACKS_REGISTRY_CACHE") or cache_directory() / "registry"
        return cls(Path(where), int(said) if most_bytes is None else most_bytes)

    def get(self, digest: str) -> Path | None:
        """Where the file is, sound and used just now; None where it is not. A damaged one is removed."""
        path = self._blobs.path(digest)
        try:
            if not self._blobs.sound(digest):
                log.warning("%s is damaged in the registry's cache, and is fetched again", digest)
                path.unlink(missing_ok=True)
                return None
        except OSError:
            return None  # not there; or it cannot be read, and takes no other file's place
        with suppress(OSError):  # of another user, or in a read-only image: then it has no turn to lose
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        return path

    def put(self, content: Iterable[bytes | bytearray], digest: str) -> Path:
        """Keep the bytes of `content`, whose digest this is. Raises StorageFull, StorageUnwritable."""
        chunks = list(content)
        path = self._blobs.path(digest)
        with _writing():
            make_directory(path.parent)
            make_directory(self._partial)
            self._make_room(sum(map(len, chunks)))
            with replacing(path, partial(self._coming(digest))) as temporary:
                write_file(temporary, chunks, 0o444)
        self._blobs.trust(digest)
        return path

    def fetch(self, digest: str, source: Source, *, anew: bool = False) -> Path:
        """Have `source` bring the file; what came before a fetch broke off does not come again.

        Args:
            anew: all of it comes, whatever is here.

        Raises:
            CorruptBlob: there is no such file, or its bytes are others.
            StorageFull, StorageUnwritable, Unavailable
        """
        path, coming = self._blobs.path(digest), self._coming(digest)
        with _writing(), _held(coming) as file:
            if not anew and (found := self.get(digest)) is not None:  # another has brought it meanwhile
                coming.unlink()
                return found
            size = source.size()
            if size is None:
                coming.unlink()
                raise CorruptBlob(f"the stored bytes of {digest} cannot be read: there are none; {ADVICE}")
            came = 0 if anew else os.fstat(file.fileno()).st_size
            self._make_room(size - came)
            sound = _bring(file, source, came, size) == digest
            if not sound and came:  # a power cut may have spoilt what was here
                sound = _bring(file, source, 0, size) == digest
            if not sound:
                coming.unlink()
                raise CorruptBlob(f"the stored bytes of {digest} do not match their digest; {ADVICE}")
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
            make_directory(path.parent)
            os.replace(coming, path)
            fsync_directory(path.parent)
            self._blobs.trust(digest)
        return path

    def drop(self, digest: str) -> None:
        """Keep the file no more."""
        with _writing():
            self._blobs.path(digest).unlink(missing_ok=True)

    # --- manifests --------------------------------------------------------------------------------

    def manifest(self, name: str) -> bytes | None:
        """The one last kept under `name`."""
        try:
            return (self._manifests / name).read_bytes()
        except FileNotFoundError:
            return None

    def keep_manifest(self, name: str, content: bytes) -> None:
        """Keep it, where it is another; where nothing can be kept, the log says so."""
        try:
            if self.manifest(name) != content:
                with _writing():
                    make_directory(self._manifests)
                    with replacing(self._manifests / name) as temporary:
                        write_file(temporary, [content])
        except (BrainstacksError, OSError) as error:
            log.warning("the registry's manifest is not kept for times when it is out of reach: %s", error)

    # --- inside -----------------------------------------------------------------------------------

    def _coming(self, digest: str) -> Path:
        """Where the file is while it comes."""
        return self._partial / digest

    def _make_room(self, needed: int) -> None:
        """Remove what was not used for the longest, until `needed` bytes more fit. Raises StorageFull."""
        if needed > self._most:
            raise StorageFull(
                f"a file of {needed} bytes does not fit the registry's cache, which is given {self._most}; "
                "give it more with --registry-cache-bytes"
            )
        found = []
        for path in (*self._blobs.directory.glob("*"), *self._partial.glob("*")):
            with suppress(FileNotFoundError):
                stat = path.stat()
                found.append((max(stat.st_atime_ns, stat.st_mtime_ns), stat.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total + needed <= self._most:
                return
            if path.parent != self._partial or _abandoned(path):
                path.unlink(missing_ok=True)
                total -= size


def _bring(file: io.FileIO, source: Source, start: int, size: int) -> str:
    """Write the bytes from `start` on; the digest of all."""
    file.truncate(start)
    file.seek(start)
    while (at := file.tell()) < size:
        piece = source.read(at, min(at + PIECE, size))
        while piece:
            piece = piece[file.write(piece) :]
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _held(path: Path) -> Iterator[io.FileIO]:
    """The file, made where there is none, and held by nobody else meanwhile; waits for who does."""
    make_directory(path.parent)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with io.FileIO(descriptor, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(descriptor)):  # else it was renamed or removed
                    yield file
                    return


def _abandoned(path: Path) -> bool:
    """Nobody holds this file."""
    with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


@contextmanager
def _writing() -> Iterator[None]:
    """Says of a cache that cannot be written why."""
    with storage_full("the registry's cache", _FULL), writable("the registry's cache (--registry-cache)"):
        yield
