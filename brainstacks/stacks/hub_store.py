"""A registry that people publish on the Hugging Face hub: the same files, in a repository; read only."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from brainstacks.durable import storage_full
from brainstacks.errors import ConfigError, StorageUnwritable, Unavailable
from brainstacks.stacks.artifact import check_digest
from brainstacks.stacks.blob_cache import BlobCache
from brainstacks.stacks.manifest import Manifest
from brainstacks.stacks.store import BLOBS, MANIFEST, Stamp

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_URL = re.compile(rf"hf://({_NAME}/{_NAME})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,99}}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubUrl:
    """`hf://OWNER/NAME`, or `hf://OWNER/NAME@REVISION` for a branch, tag or commit."""

    repository: str
    revision: str | None

    @classmethod
    def of(cls, url: str) -> HubUrl:
        """Raises ConfigError: it is none, or holds more."""
        found = _URL.fullmatch(url)
        if found is None:  # not repeated: there may be a secret in it
            raise ConfigError("the registry's URL is no hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
        return cls(found[1], found[2])


class HubStore:
    """A `Store` of which every method that writes raises StorageUnwritable. A private repository is read with
    the hub's own HF_TOKEN or login.

    Args:
        url: see `HubUrl`.
        cache: of files and of the manifest, on this machine.

    Raises:
        ConfigError: it is no such URL.
    """

    def __init__(self, url: str, cache: BlobCache) -> None:
        parsed = HubUrl.of(url)
        self._url = url
        self._repository, self._revision = parsed.repository, parsed.revision
        self._fixed = self._revision is not None and _COMMIT.fullmatch(self._revision) is not None
        self._cache = cache
        self._name = hashlib.sha256(url.encode()).hexdigest()

    def read_manifest(self) -> tuple[bytes | None, Stamp]:
        with self._downloaded(MANIFEST) as path:
            if path is None:
                raise ConfigError(
                    f"{self._url}: there is no {MANIFEST}, so it is no registry; `brainstacks release` makes "
                    "one"
                )
            content = path.read_bytes()
        self._cache.keep_manifest(self._name, content)
        return content, self._revision if self._fixed else hashlib.sha256(content).hexdigest()

    def manifest_stamp(self) -> Stamp:
        return self._revision if self._fixed else self.read_manifest()[1]

    def last_manifest(self) -> bytes | None:
        return self._cache.manifest(self._name)

    def verified(self, digest: str, *, anew: bool = False) -> Path:
        check_digest(digest)
        if not anew and (path := self._cache.get(digest)) is not None:
            return path
        with self._downloaded(f"{BLOBS}/{digest}") as path:
            return self._cache.fetch(digest, _Source(path), anew=anew)

    def has(self, digest: str) -> bool:
        return digest in self.digests()

    def digests(self) -> list[str]:
        """Of what the manifest lists; other files of the repository are not looked for."""
        return sorted(self._manifest().referenced())

    def total_bytes(self) -> int:
        return sum({version.digest: version.bytes for version in self._manifest().versions()}.values())

    def _manifest(self) -> Manifest:
        return Manifest.from_bytes(self.read_manifest()[0] or b"")

    def writing(self) -> NoReturn:
        raise StorageUnwritable(
            f"{self._url} is read only: publish to a registry of your own, make the next release of it with "
            "`brainstacks release`, and upload that"
        )

    def replace_manifest(self, content: bytes, stamp: Stamp) -> NoReturn:
        self.writing()

    def put(self, content: Iterable[bytes | bytearray], digest: str) -> NoReturn:
        self.writing()

    def delete(self, digests: Collection[str], stamp: Stamp) -> NoReturn:
        self.writing()

    @contextmanager
    def _downloaded(self, name: str) -> Iterator[Path | None]:
        """A file of the repository, for the while; None where there is none of this name."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        with tempfile.TemporaryDirectory(prefix="brainstacks-") as directory:
            try:
                with storage_full("a download"):
                    path: Path | None = Path(
                        hf_hub_download(self._repository, name, revision=self._revision, local_dir=directory)
                    )
            except LocalEntryNotFoundError:  # what the library says where it reaches nobody
                raise self._unreachable("no connection") from None
            except EntryNotFoundError:
                path = None
            except (RepositoryNotFoundError, RevisionNotFoundError):
                raise ConfigError(
                    f"{self._url}: the hub has no such repository or revision, or does not show it to you; "
                    "look at the name, or set HF_TOKEN"
                ) from None
            except OSError as error:
                raise self._unreachable(type(error).__name__) from None
            yield path

    def _unreachable(self, why: str) -> Unavailable:
        return Unavailable(
            f"{self._url} cannot be reached ({why}); look at the network. What is cached is served on",
            retry_after=5,
            code="registry_unreachable",
        )


@dataclass(frozen=True)
class _Source:
    """A downloaded file, for the cache; None where there is none."""

    path: Path | None

    def size(self) -> int | None:
        return None if self.path is None else self.path.stat().st_size

    def read(self, start: int, stop: int) -> memoryview:
        if self.path is None:
            raise FileNotFoundError("there is no such file")
        with self.path.open("rb") as file:
            file.seek(start)
            return memoryview(file.read(stop - start))
