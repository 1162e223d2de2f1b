"""What the registry asks of a place for its bytes: a manifest that is compared and set, and files by digest.

manifest.json           what is published; replaced as a whole, by whoever has seen the one that is there
blobs/sha256/<digest>   files by content; written once, never changed
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from brainstacks.errors import Conflict

ADVICE = "publish the file again, activate another version, or restore the registry from a backup"
"""What to do about a file that is missing or damaged."""

MANIFEST = "manifest.json"
BLOBS = "blobs/sha256"

Stamp = Hashable
"""Of a manifest as it is stored: equal for the same one and for no other; None where there is none."""


class Superseded(Conflict):
    """The manifest is not the one that was read: another writer was faster. Nothing was changed."""


class Store(Protocol):
    """Digests are sha256 in hexadecimal. Where bytes are far away, any method may raise Unavailable."""

    def writing(self) -> AbstractContextManager[None]:
        """What a change is made in. Excludes other writers where the place can; elsewhere it holds nothing,
        and whoever is too late is told by `replace_manifest`.

        Raises:
            StorageFull, StorageUnwritable: nothing can be written there.
        """

    def read_manifest(self) -> tuple[bytes | None, Stamp]:
        """The manifest's bytes, None where nothing was ever published; and the stamp of these very bytes."""

    def manifest_stamp(self) -> Stamp:
        """That of the manifest that is stored now; costs little."""

    def last_manifest(self) -> bytes | None:
        """The manifest as this machine last saw it, where it may be out of reach; None where it never was."""

    def replace_manifest(self, content: bytes, stamp: Stamp) -> Stamp:
        """Replace the manifest as a whole if it is still the one with `stamp`. Within `writing`.

        Returns:
            the new one's stamp.

        Raises:
            Superseded: it is another one.
            StorageFull, StorageUnwritable
        """

    def put(self, content: Iterable[bytes | bytearray], digest: str) -> None:
        """Store the bytes of `content`, whose digest this is; a damaged copy is replaced. Within `writing`.

        Raises:
            StorageFull: no room; nothing is left behind.
            StorageUnwritable
        """

    def has(self, digest: str) -> bool:
        """Whether there are such bytes, sound or not."""

    def verified(self, digest: str, *, anew: bool = False) -> Path:
        """A local path from which the bytes can be memory-mapped. They are verified on first use and when
        the file has changed; with `anew`, what is stored is, whatever is known. What was put is verified.

        Raises:
            CorruptBlob: they are missing or do not match the digest.
        """

    def delete(self, digests: Collection[str], stamp: Stamp) -> dict[str, int]:
        """Delete what the manifest with `stamp` does not reference: digest -> bytes freed, of those that
        were there and that no publication under way may be about to reference. Within `writing`. A reader's
        open mapping stays good.

        Raises:
            Superseded: the manifest is another one.
        """

    def digests(self) -> list[str]:
        """Digests of everything stored, sorted."""

    def total_bytes(self) -> int:
        """Bytes of everything stored."""
