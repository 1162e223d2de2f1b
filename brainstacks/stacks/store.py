"""Where a registry's bytes live.

    <root>/manifest.json           what is published; replaced as a whole
    <root>/blobs/sha256/<digest>   files by content; written once, never changed
    <root>/tmp/                    files being written, by the holder of the lock and nobody else
    <root>/lock                    held (flock) by the one process that writes

Every write goes to a temporary file in the same filesystem, is fsynced, renamed over its name, and the
directory fsynced: a reader, and a restart after a crash, sees the old or the new, never a part.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from brainstacks.durable import make_directory, replacing, storage_full, writable, write_file
from brainstacks.errors import CorruptBlob
from brainstacks.stacks.artifact import check_digest, is_digest, sha256_file

_FULL = "the registry's store has no room for {what}; free some with `brainstacks prune` or enlarge it"


class Store(Protocol):
    """What the registry asks of a place for bytes. Digests are sha256 in hexadecimal."""

    def lock(self) -> AbstractContextManager[None]:
        """Exclude every other writer, in this process and in others; sweep what dead writers left.

        Raises:
            StorageFull, StorageUnwritable: nothing can be written there.
        """

    def read_manifest(self) -> bytes | None:
        """The manifest's bytes, or None where nothing was ever published. Needs no lock."""

    def manifest_stamp(self) -> Hashable:
        """Changes whenever the manifest is replaced; costs little. Needs no lock."""

    def write_manifest(self, content: bytes) -> None:
        """Replace the manifest as a whole. Needs the lock. Raises StorageFull."""

    def put(self, content: Iterable[bytes | bytearray], digest: str) -> None:
        """Store the bytes of `content`, whose digest this is; a damaged copy is replaced. Needs the lock.

        Raises:
            StorageFull: no room; nothing is left behind.
        """

    def verified(self, digest: str, *, anew: bool = False) -> Path:
        """A local path from which the bytes can be memory-mapped. They are verified on first use and when
        the file has changed; with `anew`, whatever is known. What was put is verified.

        Raises:
            CorruptBlob: they are missing or do not match the digest.
        """

    def delete(self, digest: str) -> int:
        """Delete the bytes; how many were freed. Needs the lock. A reader's open mapping stays good."""

    def digests(self) -> list[str]:
        """Digests of everything stored, sorted."""

    def total_bytes(self) -> int:
        """Bytes of everything stored."""


class LocalStore:
    """A `Store` in a local directory. Reading needs no write permission.

    Args:
        root: an existing directory.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "blobs" / "sha256"
        self._temporary = root / "tmp"
        self._manifest = root / "manifest.json"
        self._verified: dict[str, tuple[int, int, int]] = {}

    @contextmanager
    def lock(self) -> Iterator[None]:
        with _writing():
            descriptor = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with _writing():
                make_directory(self._blobs)
                make_directory(self._temporary)
                for stray in self._temporary.iterdir():  # only the lock's holder writes here: it is dead
                    stray.unlink()
            yield
        finally:
            os.close(descriptor)  # releases the lock

    def read_manifest(self) -> bytes | None:
        try:
            return self._manifest.read_bytes()
        except FileNotFoundError:
            return None

    def manifest_stamp(self) -> tuple[int, int, int] | None:
        try:
            return _identity(self._manifest)
        except FileNotFoundError:
            return None

    def write_manifest(self, content: bytes) -> None:
        self._write(self._manifest, [content], mode=0o644)

    def put(self, content: Iterable[bytes | bytearray], digest: str) -> None:
        target = self._path(digest)
        if not target.exists() or sha256_file(target) != digest:
            self._write(target, content, mode=0o444)
        self._verified[digest] = _identity(target)

    def verified(self, digest: str, *, anew: bool = False) -> Path:
        path = self._path(digest)
        advice = "publish the file again, activate another version, or restore the registry from a backup"
        try:
            identity = _identity(path)
            if anew or self._verified.get(digest) != identity:
                if sha256_file(path) != digest:
                    raise CorruptBlob(f"the stored bytes of {digest} do not match their digest; {advice}")
                self._verified[digest] = identity
        except OSError as error:
            raise CorruptBlob(f"the stored bytes of {digest} cannot be read; {advice}") from error
        return path

    def _write(self, target: Path, chunks: Iterable[bytes | bytearray], mode: int) -> None:
        temporary = self._temporary / uuid.uuid4().hex
        with _writing(), replacing(target, temporary):
            write_file(temporary, chunks, mode)

    def _path(self, digest: str) -> Path:
        check_digest(digest)
        return self._blobs / digest

    def delete(self, digest: str) -> int:
        path = self._path(digest)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return 0
        with _writing():
            path.unlink(missing_ok=True)
        return size

    def digests(self) -> list[str]:
        return sorted(path.name for path in self._blobs.glob("*") if is_digest(path.name))

    def total_bytes(self) -> int:
        return sum(self._path(digest).stat().st_size for digest in self.digests())


def _identity(path: Path) -> tuple[int, int, int]:
    """Of a file's bytes, as far as can be told without reading them."""
    stat = path.stat()
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns)


@contextmanager
def _writing() -> Iterator[None]:
    """Says of a place that cannot be written why."""
    with storage_full("this", _FULL), writable("the registry's store"):
        yield
