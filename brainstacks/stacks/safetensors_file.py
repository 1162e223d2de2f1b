"""The safetensors container, read strictly and without torch.

    u64 little-endian: length n of the header
    n bytes of JSON:   {"<tensor>": {"dtype", "shape", "data_offsets": [start, end]}, "__metadata__": {...}}
    the rest:          the tensors' bytes, row-major; offsets count from here

The safetensors library accepts repeated keys, a hundred thousand empty tensors, and NaN, so a file from a
client passes through here first. Files are written by the library itself.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainstacks.errors import InvalidArtifact
from brainstacks.stacks.document import Fields, parse_json, show

MAX_HEADER_BYTES = 8 * 2**20
MAX_TENSORS = 65_536
MAX_TENSOR_BYTES = 2**48
MAX_RANK = 8

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
"""Bytes per element of each dtype that a container may hold."""

EXPONENT_BITS: dict[str, tuple[type[np.unsignedinteger], int]] = {
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
"""Exponent mask of each float dtype: all ones there, and nowhere else, is an infinity or a NaN."""

MAX_MAGNITUDE = 2.0**14
"""The largest |weight|: thousands of times what training leaves (0.07 in the demo stacks, 1.05 in
their router), and a value of every float dtype."""

_MAX_BITS = {"F32": 0x4680_0000, "F16": 0x7400, "BF16": 0x4680}
"""`MAX_MAGNITUDE` in the bits of each float dtype, which are ordered as the magnitudes are."""

CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: bytes `start..end` after `Header.raw`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a container says of itself.

    Attributes:
        tensors: by name, in the order of their bytes.
        metadata: the `__metadata__` strings.
        raw: the bytes before the first tensor's.
        size: bytes of the whole file.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    raw: bytes
    size: int


def read_header(path: Path) -> Header:
    """Read and check everything of the container at `path` but the tensors' values.

    Raises:
        InvalidArtifact: it is not a safetensors file; it is cut short or goes on after the last tensor; its
            header is longer than `MAX_HEADER_BYTES` or not strict JSON; it has more than `MAX_TENSORS`
            tensors; a dtype, shape or offset is impossible; tensors overlap or leave a gap.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise InvalidArtifact(
                f"the file has {size} bytes; a safetensors file starts with 8 bytes of length"
            )
        length = int.from_bytes(prefix, "little")
        if prefix[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise InvalidArtifact(
                "the file is a pickle or zip (`.pt`), which is never read; send safetensors"
            )
        if length > MAX_HEADER_BYTES:
            raise InvalidArtifact(f"the header claims {length} bytes; at most {MAX_HEADER_BYTES} are read")
        if length < 2 or 8 + length > size:
            raise InvalidArtifact(
                f"the header claims {length} bytes in a file of {size}; the file is cut short"
            )
        raw = file.read(length)
    if len(raw) != length or raw[:1] != b"{":
        raise InvalidArtifact("the header is not a JSON object; send a safetensors file")
    document = parse_json(raw, "the header")
    if not isinstance(document, dict):
        raise InvalidArtifact("the header is not a JSON object; send a safetensors file")
    metadata = _metadata(document.pop("__metadata__", {}))
    if len(document) > MAX_TENSORS:
        raise InvalidArtifact(f"the file has {len(document)} tensors; at most {MAX_TENSORS} are read")
    infos = [(name, _tensor(name, entry)) for name, entry in document.items()]
    infos.sort(key=lambda item: (item[1].start, item[1].end))
    _check_tiling(infos, size - 8 - length)
    return Header(dict(infos), metadata, prefix + raw, size)


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise InvalidArtifact("`__metadata__` is not an object of strings; the container allows nothing else")
    return value


def _tensor(name: str, entry: object) -> TensorInfo:
    what = f"tensor {show(name)}"
    fields = Fields(entry, what)
    dtype, shape, offsets = fields.text("dtype"), fields.items("shape"), fields.items("data_offsets")
    fields.end()
    if dtype not in ITEM_BYTES:
        raise InvalidArtifact(f"{what} has dtype {show(dtype)}; known are {', '.join(ITEM_BYTES)}")
    if len(shape) > MAX_RANK or not all(_is_size(n) for n in shape):
        raise InvalidArtifact(f"{what} has shape {show(shape)}; it is at most {MAX_RANK} sizes >= 0")
    if len(offsets) != 2 or not all(_is_size(n) for n in offsets) or offsets[0] > offsets[1]:
        raise InvalidArtifact(
            f"{what} has data_offsets {show(offsets)}; they are a start and an end >= start"
        )
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if needed != offsets[1] - offsets[0] or needed > MAX_TENSOR_BYTES:
        raise InvalidArtifact(
            f"{what} has {offsets[1] - offsets[0]} bytes; {dtype} of shape {show(shape)} needs {needed}"
        )
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_tiling(infos: list[tuple[str, TensorInfo]], data_bytes: int) -> None:
    end = 0
    for name, info in infos:
        if info.start != end:
            fault = "overlaps the one before" if info.start < end else "leaves a gap before it"
            raise InvalidArtifact(f"tensor {show(name)} starts at byte {info.start}, not {end}: it {fault}")
        end = info.end
    if end != data_bytes:
        fault = "is cut short" if end > data_bytes else "has trailing bytes"
        raise InvalidArtifact(f"the tensors need {end} bytes and the file holds {data_bytes}: it {fault}")


def check_values(path: Path, header: Header, data: bytearray | None = None) -> str:
    """Check that every value of every tensor is finite and at most `MAX_MAGNITUDE`, and hash the file on the
    way: it is read once, in chunks of at most 1 MiB.

    Args:
        data: is filled with the tensors' bytes, all that follow `header.raw`.

    Returns:
        the file's digest, sha256 in hexadecimal.

    Raises:
        InvalidArtifact: a tensor holds NaN, infinity or a larger value, or its dtype is not in
            `EXPONENT_BITS`; it is named.
    """
    digest, chunk = hashlib.sha256(header.raw), memoryview(bytearray(CHUNK_BYTES))
    with open(path, "rb", buffering=0) as file:
        file.seek(len(header.raw))
        for name, info in header.tensors.items():  # in the order of their bytes, without gaps
            if info.dtype not in EXPONENT_BITS:
                raise InvalidArtifact(
                    f"tensor {show(name)} has dtype {info.dtype}; weights are {', '.join(EXPONENT_BITS)}"
                )
            unsigned, infinity = EXPONENT_BITS[info.dtype]
            magnitude = unsigned(np.iinfo(unsigned).max >> 1)  # all bits but the sign
            for start in range(info.start, info.end, CHUNK_BYTES):
                end = min(start + CHUNK_BYTES, info.end)
                raw = chunk[: end - start] if data is None else memoryview(data)[start:end]
                if file.readinto(raw) < len(raw):
                    raise InvalidArtifact(
                        f"the file ends inside tensor {show(name)}; it changed while being read"
                    )
                digest.update(raw)
                largest = int((np.frombuffer(raw, unsigned) & magnitude).max())
                if largest >= infinity:
                    raise InvalidArtifact(f"tensor {show(name)} holds NaN or infinity; weights are finite")
                if largest > _MAX_BITS[info.dtype]:
                    raise InvalidArtifact(
                        f"tensor {show(name)} holds {_value(largest, info.dtype):.3g} or its negative; the "
                        f"magnitude of a weight is at most {MAX_MAGNITUDE:.0f}"
                    )
    return digest.hexdigest()


def _value(bits: int, dtype: str) -> float:
    """What the bits of a float dtype stand for."""
    if dtype == "F16":
        return float(np.uint16(bits).view(np.float16))
    return float(np.uint32(bits << 16 if dtype == "BF16" else bits).view(np.float32))
