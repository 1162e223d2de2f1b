"""A registry in a bucket: the manifest by conditional writes, files by their digest, a cache on this machine.

    <prefix>/manifest.json           replaced by whoever has seen the very one that is there
    <prefix>/blobs/sha256/<digest>   put before a manifest names it

A publisher that is killed leaves at most a file that nothing names, and a prune must not take one that a
publisher is about to name. Its file is newer than the manifest that it has read, as it puts it even where
there is one already. So what the manifest does not name and is older than it is nobody's, and what is newer
is left alone for an hour. What slips through (a publisher that others were faster than, a file that was put
again just after it was listed) is seen afterwards: the publisher looks for its file once more when its
manifest is there, and puts it again (`registry._publish`); the prune looks at what the manifest names then,
and says what is to be published again (`ledger.discard`). Whichever looks last sees it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from brainstacks.stacks.artifact import check_digest, is_digest
from brainstacks.stacks.blob_cache import BlobCache
from brainstacks.stacks.bucket import Bucket, Listed
from brainstacks.stacks.store import BLOBS, MANIFEST, Stamp, Superseded

UNDER_WAY = timedelta(hours=1)
"""What is newer than the manifest is left to a publisher for so long, by this machine's clock; one that is
slower looks for itself."""


class ObjectStore:
    """A `Store` in a bucket.

    Args:
        cache: of files and of the manifest, on this machine.
    """

    def __init__(self, bucket: Bucket, cache: BlobCache) -> None:
        self._bucket = bucket
        self._cache = cache
        self._name = hashlib.sha256(f"{bucket.endpoint} {bucket.url}".encode()).hexdigest()

    def writing(self) -> AbstractContextManager[None]:
        """Holds nothing."""
        return nullcontext()

    def read_manifest(self) -> tuple[bytes | None, Stamp]:
        found = self._bucket.get(MANIFEST)
        if found is None:
            return None, None
        self._cache.keep_manifest(self._name, found.content)
        return found.content, found.tag

    def manifest_stamp(self) -> Stamp:
        return self._bucket.tag(MANIFEST)

    def last_manifest(self) -> bytes | None:
        return self._cache.manifest(self._name)

    def replace_manifest(self, content: bytes, stamp: Stamp) -> Stamp:
        tag = self._bucket.replace(MANIFEST, content, None if stamp is None else str(stamp))
        self._cache.keep_manifest(self._name, content)
        return tag

    def put(self, content: Iterable[bytes | bytearray], digest: str) -> None:
        self._bucket.upload(_key(digest), self._cache.put(content, digest))

    def has(self, digest: str) -> bool:
        return self._bucket.tag(_key(digest)) is not None

    def verified(self, digest: str, *, anew: bool = False) -> Path:
        if not anew and (path := self._cache.get(digest)) is not None:
            return path
        return self._cache.fetch(digest, _Source(self._bucket, _key(digest)), anew=anew)

    def delete(self, digests: Collection[str], stamp: Stamp) -> dict[str, int]:
        if not digests:
            return {}
        listed = self._bucket.list()
        manifest = listed.get(MANIFEST)
        if self._bucket.tag(MANIFEST) != stamp:  # after the list, so that this has the time of that very one
            raise Superseded(f"{self._bucket.url}: another writer was faster")
        settled = datetime.now(UTC) - UNDER_WAY
        if manifest is not None:
            settled = max(settled, manifest.modified)
        stored = {digest: listed[_key(digest)] for digest in sorted(digests) if _key(digest) in listed}
        freed = {digest: blob.size for digest, blob in stored.items() if blob.modified < settled}
        self._bucket.delete([_key(digest) for digest in freed])
        for digest in freed:
            self._cache.drop(digest)
        return freed

    def digests(self) -> list[str]:
        return sorted(self._blobs())

    def total_bytes(self) -> int:
        return sum(blob.size for blob in self._blobs().values())

    def _blobs(self) -> dict[str, Listed]:
        names = {key.removeprefix(f"{BLOBS}/"): listed for key, listed in self._bucket.list().items()}
        return {name: listed for name, listed in names.items() if is_digest(name)}


@dataclass(frozen=True)
class _Source:
    """One file, for the cache."""

    bucket: Bucket
    key: str

    def size(self) -> int | None:
        return self.bucket.size(self.key)

    def read(self, start: int, stop: int) -> memoryview:
        return self.bucket.read(self.key, start, stop)


def _key(digest: str) -> str:
    check_digest(digest)
    return f"{BLOBS}/{digest}"
