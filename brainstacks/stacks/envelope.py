"""What stack files and router files share: one metadata document, and an exact set of tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from brainstacks.config import from_mapping
from brainstacks.errors import ConfigError, InvalidArtifact
from brainstacks.stacks.document import Fields, parse_json, show
from brainstacks.stacks.safetensors_file import (
    EXPONENT_BITS,
    ITEM_BYTES,
    Header,
    TensorInfo,
    check_values,
    read_header,
)

FORMAT_VERSION = 1
METADATA_KEY = "brainstacks"
MAX_METADATA_CHARS = 2**20

T = TypeVar("T")

Shaped = tuple[str, tuple[int, ...]]
"""A tensor's name and shape."""


@dataclass(frozen=True)
class Kind(Generic[T]):
    """Stack or router.

    Attributes:
        parse: its metadata document -> what it says.
        shapes: name and shape of every tensor that it then has, all of one dtype.
        float32: the same of those that are F32, whatever the others are.
    """

    parse: Callable[[str], T]
    shapes: Callable[[T], Iterable[Shaped]]
    float32: Callable[[T], Iterable[Shaped]] = lambda metadata: ()

    def read(self, path: Path) -> T:
        """The metadata of a file, its header and tensor set checked, its values not read.

        Raises:
            InvalidArtifact: it is not a sound file of this kind.
        """
        return self._read(path)[1]

    def inspect(self, path: Path, *, keep: bool = False) -> CheckedFile[T]:
        """Check a file completely, values included; it is read once. Raises as `read`.

        Args:
            keep: all of it in memory.
        """
        header, metadata = self._read(path)
        data = bytearray(header.size - len(header.raw)) if keep else None
        return CheckedFile(metadata, check_values(path, header, data), header, data)

    def _read(self, path: Path) -> tuple[Header, T]:
        header = read_header(path)
        metadata = self.parse(metadata_text(header))
        check_tensors(header, self.shapes(metadata), self.float32(metadata))
        return header, metadata


@dataclass(frozen=True)
class CheckedFile(Generic[T]):
    """A file that was checked completely.

    Attributes:
        digest: sha256 of the file.
        data: its tensors' bytes, where they were kept.
    """

    metadata: T
    digest: str
    header: Header = field(repr=False)
    data: bytearray | None = field(default=None, repr=False)

    @property
    def bytes(self) -> int:
        """The file's size."""
        return self.header.size


def open_document(text: str, kind: str) -> Fields:
    """The fields of the metadata document `text`, `kind` and `format_version` taken and checked."""
    if len(text) > MAX_METADATA_CHARS:
        raise InvalidArtifact(
            f"the metadata has {len(text)} characters; at most {MAX_METADATA_CHARS} are read"
        )
    fields = Fields(parse_json(text, "the metadata"), "the metadata")
    if (found := fields.text("kind")) != kind:
        raise InvalidArtifact(f"the file is a {show(found)}; a {kind!r} is expected here")
    if (version := fields.integer("format_version")) != FORMAT_VERSION:
        raise InvalidArtifact(f"the file has format version {version}; this program reads {FORMAT_VERSION}")
    return fields


def build_config(cls: type[T], values: Mapping[str, Any], what: str = "config") -> T:
    """The configuration dataclass `cls` from a file's `values`, which must give every field.

    Args:
        what: the field of the metadata that it is.

    Raises:
        InvalidArtifact: a field is unknown, missing, of another type or out of range.
    """
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        if f.name not in values:
            raise InvalidArtifact(f"{what!r} lacks the field {f.name!r}")
    try:
        return from_mapping(cls, values)
    except (ConfigError, TypeError, AttributeError, ValueError) as error:
        raise InvalidArtifact(f"{what!r} of the metadata is refused: {str(error)[:300]}") from error


def objects(fields: Fields, name: str) -> list[Mapping[str, Any]]:
    """The field `name`, a list of objects."""
    values = fields.items(name)
    for value in values:
        if not isinstance(value, dict):
            raise InvalidArtifact(f"{name!r} of the metadata holds {show(value)}; it is a list of objects")
    return values


def metadata_text(header: Header) -> str:
    """The one JSON document in `header`. Raises InvalidArtifact when `__metadata__` has anything else."""
    if set(header.metadata) != {METADATA_KEY}:
        raise InvalidArtifact(
            f"`__metadata__` has the keys {show(sorted(header.metadata))}; a stack or router file has "
            f"the single key {METADATA_KEY!r}"
        )
    return header.metadata[METADATA_KEY]


def check_tensors(header: Header, expected: Iterable[Shaped], float32: Iterable[Shaped] = ()) -> None:
    """Check that `header` has exactly the `expected` tensors, in one float dtype, and the `float32` ones.

    Raises:
        InvalidArtifact: a tensor is missing, extra, misshapen, misplaced or of another dtype; it is named.
    """
    extra = dict(header.tensors)
    dtype: str | None = None
    for name, shape in expected:  # stops at the first one missing, so that a huge claim costs nothing
        info = _taken(extra, name, shape)
        dtype = dtype or info.dtype
        if info.dtype not in EXPONENT_BITS or info.dtype != dtype:
            raise InvalidArtifact(
                f"tensor {name!r} has dtype {info.dtype}; all tensors of a file share one of "
                f"{', '.join(EXPONENT_BITS)}"
            )
    for name, shape in float32:
        if (info := _taken(extra, name, shape)).dtype != "F32":
            raise InvalidArtifact(f"tensor {name!r} has dtype {info.dtype}; it is F32")
    if extra:
        raise InvalidArtifact(
            f"the file has {len(extra)} tensors too many, such as {show(next(iter(extra)))}; leave them out"
        )


def _taken(tensors: dict[str, TensorInfo], name: str, shape: tuple[int, ...]) -> TensorInfo:
    """The tensor `name` of this shape, out of `tensors`."""
    info = tensors.pop(name, None)
    if info is None:
        raise InvalidArtifact(f"the tensor {name!r} is missing; it has shape {list(shape)}")
    if info.shape != shape:
        raise InvalidArtifact(f"tensor {name!r} has shape {list(info.shape)}; it needs {list(shape)}")
    if info.start % ITEM_BYTES[info.dtype]:  # among tensors of another dtype, by which none can be viewed
        raise InvalidArtifact(
            f"tensor {name!r} begins at byte {info.start}; {info.dtype} begins at a multiple of "
            f"{ITEM_BYTES[info.dtype]}: put tensors of wide dtypes first"
        )
    return info
