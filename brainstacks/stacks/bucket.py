"""One registry's objects in a bucket of S3, Google Cloud Storage or Azure, or of what speaks as they do.

Credentials and endpoints are what the environment says, as for the cloud's own tools.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from brainstacks.errors import ConfigError, Unavailable
from brainstacks.stacks.bucket_errors import missing, told
from brainstacks.stacks.bucket_url import BucketUrl
from brainstacks.stacks.store import Superseded

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutMode, PutResult

    from brainstacks.stacks.bucket_url import Objects

_WRITER = "writer"
_PARTS_AT_ONCE = 4

Tag = str
"""Of an object's content, for a conditional write to compare: on Google's store its generation, else its
ETag."""


@dataclass(frozen=True)
class Object:
    """What was read: these bytes had this tag. `writer` is who wrote them, of those that `replace` does."""

    content: bytes
    tag: Tag
    writer: str | None


@dataclass(frozen=True)
class Listed:
    """An object in a list. `modified` is by the store's clock, and may be in whole seconds."""

    size: int
    modified: datetime


class Bucket:
    """Keys are relative to the registry's prefix. Every method raises Unavailable where the bucket does not
    answer or its contents may not be read, and ConfigError where there is no such bucket; those that write
    raise StorageUnwritable where that is not allowed.

    Args:
        url: as messages name it.
        endpoint: of the server, where it is not the cloud's own.
        reading: soon given up where an answer stalls.
        writing: the same objects; patient with what is sent.
        versioned: the store compares generations, not ETags.
    """

    def __init__(
        self, url: str, reading: Objects, writing: Objects, *, versioned: bool = False, endpoint: str = ""
    ) -> None:
        self.url = url
        self.endpoint = endpoint
        self._reading = reading
        self._writing = writing
        self._versioned = versioned

    @classmethod
    def open(cls, url: str) -> Bucket:
        """Asks nothing yet. Raises ConfigError: it is no URL of a bucket, or the library is not there."""
        parsed = BucketUrl.of(url)
        reading, writing = parsed.objects()
        versioned = parsed.scheme == "gs"
        return cls(str(parsed), reading, writing, versioned=versioned, endpoint=parsed.endpoint)

    def get(self, key: str) -> Object | None:
        """An object, None where there is none."""
        with suppress(FileNotFoundError), self._told():
            found = self._reading.get(key)
            writer = found.attributes.get(_WRITER)
            return Object(
                bytes(found.bytes()), self._tag(found.meta), None if writer is None else str(writer)
            )
        return None

    def tag(self, key: str) -> Tag | None:
        """That of an object, None where there is none; nothing else is read."""
        found = self._head(key)
        return None if found is None else self._tag(found)

    def size(self, key: str) -> int | None:
        """Bytes of an object, None where there is none."""
        found = self._head(key)
        return None if found is None else found["size"]

    def read(self, key: str, start: int, stop: int) -> memoryview:
        """Bytes of an object from `start` to before `stop`."""
        try:
            with self._told():
                return memoryview(self._reading.get_range(key, start=start, end=stop))
        except FileNotFoundError:
            raise Unavailable(f"{self.url}: {key} was deleted while it was read; try again") from None

    def replace(self, key: str, content: bytes, tag: Tag | None) -> Tag:
        """Write an object if the one there still has this tag; with None, if there is none.

        Raises:
            Superseded: it has another.
        """
        writer = uuid.uuid4().hex
        try:
            with self._told(put=True):
                put = self._reading.put(key, content, attributes={_WRITER: writer}, mode=self._mode(tag))
            return self._tag(put)
        except (Superseded, Unavailable) as error:
            # A try may have been taken and its answer lost; the next one then finds it superseded, by itself.
            now = self.get(key)
            if now is not None and now.writer == writer:
                return now.tag
            if isinstance(error, Superseded):
                raise
            raise Unavailable(
                f"{error.message}; the change may come to be made yet: look before a second"
            ) from None

    def upload(self, key: str, file: Path) -> None:
        """Write an object, whatever is there. A large one goes in parts, and is there as a whole or not."""
        with self._told(put=True):
            self._writing.put(key, file, max_concurrency=_PARTS_AT_ONCE)

    def delete(self, keys: Collection[str]) -> None:
        """Delete objects; one that is not there is no error."""
        for key in keys:  # of many at once some stores leave those behind one that is not there
            with suppress(FileNotFoundError), self._told(delete=True):
                self._reading.delete(key)

    def list(self) -> Mapping[str, Listed]:
        """Every object under the prefix, by key."""
        with self._told():
            found = [one for page in self._reading.list() for one in page]
        return {one["path"]: Listed(one["size"], one["last_modified"]) for one in found}

    def _head(self, key: str) -> ObjectMeta | None:
        with suppress(FileNotFoundError), self._told():
            return self._reading.head(key)
        return None

    def _tag(self, found: ObjectMeta | PutResult) -> Tag:
        tag = found["version"] if self._versioned else found["e_tag"]
        if tag is None:
            raise ConfigError(
                f"{self.url}: the store gives its objects no {'generation' if self._versioned else 'ETag'}, "
                "so nothing can be compared and set; use one that does"
            )
        return tag

    def _mode(self, tag: Tag | None) -> PutMode:
        if tag is None:
            return "create"
        return {"version": tag} if self._versioned else {"e_tag": tag}

    @contextmanager
    def _told(self, *, put: bool = False, delete: bool = False) -> Iterator[None]:
        """Says in our words what the library reports. What is not there stays a FileNotFoundError."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            yield
        except (AlreadyExistsError, PreconditionError) as error:
            raise missing(self.url, error) or Superseded(f"{self.url}: another writer was faster") from None
        except FileNotFoundError as error:
            if (lost := missing(self.url, error, put=put)) is not None:
                raise lost from None
            raise
        except BaseError as error:
            raise told(self.url, error, write=put or delete) from None
