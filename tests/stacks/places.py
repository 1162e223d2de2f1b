"""Where a registry of a test is: in a directory or in a bucket, and what can be done to it by hand there."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Protocol

from brainstacks.stacks.artifact import is_digest
from brainstacks.stacks.blob_cache import BlobCache
from brainstacks.stacks.registry import Registry
from tests.stacks.s3_server import S3Server

BLOBS = "blobs/sha256/"


class Place(Protocol):
    def open(self, *, create: bool = False) -> Registry:
        """As another machine opens it, which has nothing cached."""

    def content(self) -> dict[str, bytes]:
        """Everything that is stored, by name."""

    def write(self, name: str, content: bytes | None) -> None:
        """Replace what is stored under a name, which readers may know; None removes it."""


class Directory:
    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, *, create: bool = False) -> Registry:
        return Registry(self.root, create=create)

    def content(self) -> dict[str, bytes]:
        files = (path for path in self.root.rglob("*") if path.is_file() and path.name != "lock")
        return {str(path.relative_to(self.root)): path.read_bytes() for path in files}

    def write(self, name: str, content: bytes | None) -> None:
        path = self.root / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)


class Bucket:
    """Args:
    caches: where machines keep what they read, each on its own.
    """

    def __init__(self, server: S3Server, caches: Path) -> None:
        self.root = server.registry()
        self._server = server
        self._caches = caches
        self._machines = itertools.count()  # threads open too: no two get one number

    def open(self, *, create: bool = False) -> Registry:
        directory = self._caches / str(next(self._machines))
        directory.mkdir(parents=True)
        return Registry(self.root, create=create, cache=BlobCache(directory))

    def content(self) -> dict[str, bytes]:
        return self._server.keys(self.root)

    def write(self, name: str, content: bytes | None) -> None:
        self._server.write(self.root, name, content)


def blobs(place: Place) -> list[str]:
    """Digests of everything stored, sorted."""
    return sorted(name.removeprefix(BLOBS) for name in place.content() if is_digest(name.removeprefix(BLOBS)))


def spoil(place: Place, digest: str, position: int = -3) -> None:
    """Flip a bit of a stored file."""
    content = bytearray(place.content()[BLOBS + digest])
    content[position] ^= 1
    place.write(BLOBS + digest, bytes(content))


def lose(place: Place, digest: str) -> None:
    place.write(BLOBS + digest, None)
