"""A stack or router file with something changed, drawn at random: bytes, header, document, values."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.soak.attacks import VALUES

METADATA, DOCUMENT = "__metadata__", "brainstacks"

NUMBERS = (
    float("nan"),
    float("inf"),
    -float("inf"),
    1e38,
    -1e38,
    65504.0,
    2.0**14,
    -(2.0**14),
    2.0**13,
    1e-45,
    0.0,
)
"""Values of weights: what is none, what is absurd, and what is just let through."""
DTYPES = ("F16", "BF16", "F64", "I64", "I32", "U8", "F8_E4M3", "BOOL", "F99", "f32", "")
SIZES = {"F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "U8": 1, "F8_E4M3": 1, "BOOL": 1}


@dataclass
class Container:
    """A safetensors file in its parts.

    Attributes:
        header: of the container, `__metadata__` included.
        data: bytes of the tensors.
    """

    header: dict[str, Any]
    data: bytearray

    @classmethod
    def of(cls, file: bytes) -> Container:
        size = int.from_bytes(file[:8], "little")
        return cls(json.loads(file[8 : 8 + size]), bytearray(file[8 + size :]))

    def to_bytes(self) -> bytes:
        header = json.dumps(self.header, separators=(",", ":")).encode()
        return len(header).to_bytes(8, "little") + header + self.data

    @property
    def tensors(self) -> list[str]:
        return [name for name in self.header if name != METADATA]

    def values(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A view of an F32 tensor's values."""
        start, end = self.header[name]["data_offsets"]
        return np.frombuffer(memoryview(self.data)[start:end], np.float32)


def mutated(file: bytes, pick: random.Random) -> tuple[str, bytes]:
    """The kind of change, and `file` with it; its tensors are F32."""
    change = pick.choice(CHANGES)
    return change.__name__.strip("_"), change(file, pick)


def _flipped(file: bytes, pick: random.Random) -> bytes:
    """Some bits, half of the time in the header."""
    made = bytearray(file)
    end = pick.choice((len(file), 8 + int.from_bytes(file[:8], "little")))
    for _ in range(pick.choice((1, 1, 2, 8, 64))):
        made[pick.randrange(end)] ^= 1 << pick.randrange(8)
    return bytes(made)


def _cut(file: bytes, pick: random.Random) -> bytes:
    """A slice is missing, comes twice, or is something else."""
    a, b = sorted(pick.sample(range(len(file) + 1), 2))
    return pick.choice(
        (
            file[:a],
            file[a:],
            file[:a] + file[b:],
            file[:b] + file[a:],
            file[:a] + pick.randbytes(b - a) + file[b:],
        )
    )


def _header(file: bytes, pick: random.Random) -> bytes:
    """What the container says of one tensor."""
    made = Container.of(file)
    name, other = pick.sample(made.tensors, 2)
    entry = made.header[name]
    kind = pick.choice(("drop", "rename", "shape", "transpose", "offsets", "swap", "extra", "metadata"))
    if kind == "drop":
        del made.header[name]
    elif kind == "rename":
        made.header[pick.choice((other, name.upper(), name + ".A", "", "x" * 300))] = made.header.pop(name)
    elif kind == "shape":
        entry["shape"] = pick.choice(
            ([], [0], [-1], [2**40, 2**40], [1, *entry["shape"]], [*entry["shape"], 2], "x")
        )
    elif kind == "transpose":
        entry["shape"] = entry["shape"][::-1]
    elif kind == "offsets":
        entry["data_offsets"][pick.randrange(2)] += pick.choice((-4, 4, 1, 2**40, -(2**40)))
    elif kind == "swap":
        made.header[name], made.header[other] = made.header[other], entry
    elif kind == "extra":
        entry[pick.choice(("x", "shape2"))] = pick.choice(VALUES)
    else:
        made.header[METADATA] = pick.choice(
            (*VALUES, {}, {DOCUMENT: "{}"}, {**made.header[METADATA], "x": "y"})
        )
    return made.to_bytes()


def _document(file: bytes, pick: random.Random) -> bytes:
    """One value or key of the document: of another kind, far off, gone, or one too many."""
    made = Container.of(file)
    document = json.loads(made.header[METADATA][DOCUMENT])
    places = list(_places(document))
    holder, key = pick.choice(places)
    old = holder[key]
    kind = pick.choice(("value", "value", "number", "drop", "add", "copy"))
    if kind == "value":
        holder[key] = pick.choice(VALUES)
    elif kind == "number" and type(old) in (int, float):
        holder[key] = pick.choice(
            (old + 1, old - 1, -old, old * 2, old * 10**6, old / 3, float(old), 2**70, True)
        )
    elif kind == "add" and isinstance(old, dict):
        old[pick.choice(("x", "", "\u2028", "rank"))] = pick.choice(VALUES)
    elif kind == "copy":
        other, place = pick.choice(places)
        holder[key] = other[place]
    else:
        del holder[key]
    try:
        made.header[METADATA][DOCUMENT] = json.dumps(document)
    except ValueError:  # a copy of what it is in itself
        made.header[METADATA][DOCUMENT] = "{}"
    return made.to_bytes()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (object or list, key or index) of a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in list(keys) for place in ((value, key), *_places(value[key]))]


def _values(file: bytes, pick: random.Random) -> bytes:
    """Weights that are none, absurd, or merely others."""
    made = Container.of(file)
    for name in pick.sample(made.tensors, pick.choice((1, 1, 2, len(made.tensors)))):
        values = made.values(name)
        kind = pick.choice(("one", "one", "all", "scaled", "noise"))
        if kind == "one":
            values[pick.randrange(len(values))] = pick.choice(NUMBERS)
        elif kind == "all":
            values[:] = pick.choice(NUMBERS)
        elif kind == "scaled":
            with np.errstate(over="ignore"):
                values *= np.float32(10.0 ** pick.randint(-30, 8))
        else:
            values[:] = np.frombuffer(pick.randbytes(values.nbytes), np.float32)
    return made.to_bytes()


def _largest(file: bytes, pick: random.Random) -> bytes:
    """Weights that are as large as a file may hold, of both signs, in some or all tensors."""
    made = Container.of(file)
    limit = 2.0 ** pick.randint(4, 14)
    for name in pick.sample(made.tensors, pick.randint(1, len(made.tensors))):
        values = made.values(name)
        values[:] = limit if pick.random() < 0.3 else [pick.choice((limit, -limit)) for _ in values]
    return made.to_bytes()


def _swapped(file: bytes, pick: random.Random) -> bytes:
    """Two tensors have each other's bytes, where they have as many."""
    made = Container.of(file)
    for _ in range(pick.randint(1, 4)):
        name, other = pick.sample(made.tensors, 2)
        one, two = made.values(name), made.values(other)
        if one.size == two.size:
            one[:], two[:] = two.copy(), one.copy()
        else:
            one[:] = one[::-1].copy()
    return made.to_bytes()


def _dtypes(file: bytes, pick: random.Random) -> bytes:
    """All tensors, or one, in another dtype; converted, or only called so."""
    made = Container.of(file)
    dtype = pick.choice(DTYPES)
    changed = pick.choice((made.tensors, [pick.choice(made.tensors)]))
    converted = pick.random() < 0.7
    data = bytearray()
    for name in sorted(made.tensors, key=lambda each: int(made.header[each]["data_offsets"][0])):
        raw = made.values(name).tobytes()
        if name in changed:
            made.header[name]["dtype"] = dtype
            raw = _converted(raw, dtype, pick) if converted else raw
        made.header[name]["data_offsets"] = [len(data), len(data) + len(raw)]
        data += raw
    made.data = data
    return made.to_bytes()


def _converted(raw: bytes, dtype: str, pick: random.Random) -> bytes:
    values = np.frombuffer(raw, np.float32)
    if dtype == "F16":
        return values.astype(np.float16).tobytes()
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return pick.randbytes(values.size * SIZES.get(dtype, 4))


CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flipped, _cut, _header, _document, _document, _values, _values, _largest, _swapped, _dtypes),
)
