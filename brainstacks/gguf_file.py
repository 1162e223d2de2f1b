"""What a GGUF file holds: its metadata, and its tensors as the bytes that are in the file.

Read in one pass; tensors are views of the mapped file, and read when they are used. The `gguf` package's own
reader makes an array of every string of the vocabulary, which is seconds.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from brainstacks.errors import UnsupportedModel

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_NUMBERS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""Value type -> its numpy dtype, of all that are one number."""


@dataclass(frozen=True, eq=False)
class GgufTensor:
    """Attributes:
    type: how its values are stored.
    shape: of the values, rows first, as in torch.
    data: uint8 `[*shape[:-1], bytes of a row]`, a read-only view of the file.
    """

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


class GgufFile:
    """Attributes:
    path: of the file, which must not change while this is used.
    metadata: key -> number, string, or list of them.
    tensors: by their names in the file.

    Raises:
        UnsupportedModel: it is damaged, or of a version or with a tensor type that is unknown.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.metadata, self.tensors = _read(content)
        except (struct.error, ValueError, KeyError) as error:
            raise UnsupportedModel(
                f"{path.name} cannot be read as a GGUF file ({error}); fetch it again, or give another one"
            ) from error


def _read(content: mmap.mmap) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    magic, version, tensor_count, value_count = struct.unpack_from("<4sIQQ", content)
    if magic != b"GGUF" or version not in _VERSIONS:
        raise ValueError(f"it begins with {magic!r}, version {version}; known are versions 2 and 3")
    cursor = _Cursor(content, 24)
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.string()
        if key in metadata:
            raise ValueError(f"it has {key!r} twice")
        metadata[key] = cursor.value(cursor.number("<I"))
    entries = [cursor.tensor_entry() for _ in range(tensor_count)]
    alignment = int(metadata.get("general.alignment", 32))
    if alignment < 1:
        raise ValueError(f"its alignment is {alignment}")
    start = -(-cursor.position // alignment) * alignment
    bytes_ = np.frombuffer(content, np.uint8)
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in entries:
        if name in tensors:
            raise ValueError(f"it has the tensor {name!r} twice")
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block:
            raise ValueError(f"{name} has the shape {shape}, in blocks of {block}")
        stored = (*shape[:-1], shape[-1] // block * block_bytes)
        data = bytes_[start + offset : start + offset + prod(stored)]
        if data.size != prod(stored):
            raise ValueError(f"{name} lies beyond the file's end")
        tensors[name] = GgufTensor(name, kind, shape, data.reshape(stored))
    return metadata, tensors


class _Cursor:
    """Reads value after value; a file that ends too early raises struct.error or ValueError."""

    def __init__(self, content: mmap.mmap, position: int) -> None:
        self._content = content
        self.position = position

    def number(self, format_: str) -> int:
        (value,) = struct.unpack_from(format_, self._content, self.position)
        self.position += struct.calcsize(format_)
        return int(value)

    def string(self) -> str:
        length = self.number("<Q")
        text = self._content[self.position : self.position + length]
        if len(text) != length:
            raise ValueError("it ends within a string")
        self.position += length
        return text.decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self._numbers(kind, 1)[0]
        element, count = self.number("<I"), self.number("<Q")
        read: Callable[[], str] = self.string
        return [read() for _ in range(count)] if element == _STRING else self._numbers(element, count)

    def tensor_entry(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self.string()
        dimensions = self._numbers(10, self.number("<I"))
        kind = GGMLQuantizationType(self.number("<I"))
        return name, tuple(reversed(dimensions)), kind, self.number("<Q")

    def _numbers(self, kind: int, count: int) -> list[Any]:
        if kind not in _NUMBERS:
            raise ValueError(f"it holds a value of type {kind}, which is unknown")
        values = np.frombuffer(self._content, _NUMBERS[kind], count, self.position) if count else np.empty(0)
        self.position += values.nbytes
        found: list[Any] = values.tolist()
        return found
