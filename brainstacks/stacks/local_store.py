"""A registry's bytes in a local directory.

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
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from brainstacks.durable import make_directory, replacing, storage_full, writable, write_file
from brainstacks.errors import ConfigError, CorruptBlob
from brainstacks.stacks.artifact import sha256_file
from brainstacks.stacks.blobs import Blobs
from brainstacks.stacks.store import ADVICE, BLOBS, MANIFEST, Stamp, Superseded

_FULL = "the registry's store has no room for {what}; free some with `brainstacks prune` or enlarge it"


class LocalStore:
    """A `Store` in a local directory. Reading needs no write permission.

    Args:
        root: the directory.
        create: make it when there is none.

    Raises:
        ConfigError: there is no such directory.
    """

    def __init__(self, root: Path, *, create: bool = False) -> None:
        if root.exists() and not root.is_dir():
            raise ConfigError(f"{root} is no directory, so no registry; name another place")
        if create:
            root.mkdir(parents=True, exist_ok=True)
        if not root.is_dir():
            raise ConfigError(
                f"there is no registry directory {root}; name an existing one, or publish to make one"
            )
        self._root = root
        self._blobs = Blobs(root / BLOBS)
        self._temporary = root / "tmp"
        self._manifest = root / MANIFEST

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the lock, and has swept what dead writers left."""
        with _writing():
            descriptor = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with _writing():
                make_directory(self._blobs.directory)
                make_directory(self._temporary)
                for stray in self._temporary.iterdir():  # only the lock's holder writes here: it is dead
                    stray.unlink()
            yield
        finally:
            os.close(descriptor)  # releases the lock

    def read_manifest(self) -> tuple[bytes | None, Stamp]:
        try:
            with self._manifest.open("rb") as file:
                return file.read(), _stamp(os.fstat(file.fileno()))
        except FileNotFoundError:
            return None, None

    def manifest_stamp(self) -> Stamp:
        try:
            return _stamp(self._manifest.stat())
        except FileNotFoundError:
            return None

    def last_manifest(self) -> None:
        """It is never out of reach."""

    def replace_manifest(self, content: bytes, stamp: Stamp) -> Stamp:
        self._check(stamp)
        self._write(self._manifest, [content], mode=0o644)
        return self.manifest_stamp()

    def put(self, content: Iterable[bytes | bytearray], digest: str) -> None:
        target = self._blobs.path(digest)
        if not target.exists() or sha256_file(target) != digest:
            self._write(target, content, mode=0o444)
        self._blobs.trust(digest)

    def has(self, digest: str) -> bool:
        return self._blobs.path(digest).exists()

    def verified(self, digest: str, *, anew: bool = False) -> Path:
        try:
            if not self._blobs.sound(digest, anew=anew):
                raise CorruptBlob(f"the stored bytes of {digest} do not match their digest; {ADVICE}")
        except OSError as error:
            raise CorruptBlob(f"the stored bytes of {digest} cannot be read; {ADVICE}") from error
        return self._blobs.path(digest)

    def delete(self, digests: Collection[str], stamp: Stamp) -> dict[str, int]:
        self._check(stamp)
        freed = {}
        for digest in sorted(digests):
            path = self._blobs.path(digest)
            if path.exists():
                freed[digest] = path.stat().st_size
                with _writing():
                    path.unlink()
        return freed

    def digests(self) -> list[str]:
        return self._blobs.digests()

    def total_bytes(self) -> int:
        return sum(self._blobs.path(digest).stat().st_size for digest in self.digests())

    def _check(self, stamp: Stamp) -> None:
        if self.manifest_stamp() != stamp:
            raise Superseded("the manifest was replaced by something that holds no lock; try again")

    def _write(self, target: Path, chunks: Iterable[bytes | bytearray], mode: int) -> None:
        temporary = self._temporary / uuid.uuid4().hex
        with _writing(), replacing(target, temporary):
            write_file(temporary, chunks, mode)


def _stamp(stat: os.stat_result) -> Stamp:
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns)


@contextmanager
def _writing() -> Iterator[None]:
    """Says of a place that cannot be written why."""
    with storage_full("this", _FULL), writable("the registry's store"):
        yield
