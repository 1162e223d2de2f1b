"""A weight as the step multiplies with it: panels of 16 outputs, of one of a few kinds.

    4 bits   codes [panels, d_in / 8, 16, 4] bytes; byte j of a row holds the codes of k = 8 i + j (low) and
             8 i + 4 + j (high)
    8 bits   codes [panels, d_in / 4, 16, 4] int8
    floats   [panels, d_in, 16] float32 or bfloat16 (as uint16)

Rows are filled up with zeros to whole panels; d_in of floats to whole chunks of `tiles.CHUNK`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brainstacks.kernels.tiles import CHUNK, PANEL
from brainstacks.layers.blocks import Blocks

Array = np.ndarray[Any, Any]

LINE = 64
"""Bytes of a cache line."""

MEMORY_BLOCK = 8 << 20
"""Bytes that `Memory` takes at once: numpy asks for huge pages from 4 MiB on."""

LARGEST = 127
"""Of an int8 whose sign may change."""

KINDS = ("fast_nibbles", "fast_bytes", "exact_nibbles", "exact_bytes", "floats", "halves")


@dataclass(frozen=True, eq=False)
class Panels:
    """Attributes:
    kind: one of `KINDS`.
    codes: as above.
    scales, offsets: [panels, blocks, 16] float32; offsets may be None. Those of floats are 1, in one block.
    levels: of nibbles, 16 int8 (fast) or float32 (exact); else empty.
    block: k's that share a scale.
    d_in: k's that are multiplied, filled up; d_out: real outputs.
    """

    kind: str
    codes: Array
    scales: Array
    offsets: Array | None
    levels: Array
    block: int
    d_in: int
    d_out: int

    @property
    def fast(self) -> bool:
        return self.kind.startswith("fast")

    @property
    def count(self) -> int:
        """Panels."""
        return len(self.codes)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.codes, self.scales, self.offsets, self.levels) if a is not None)


def of_blocks(blocks: Blocks, *, fast: bool, block: int | None = None) -> Panels:
    """Pack quantised weights.

    Args:
        fast: int8 products; levels that are no whole numbers become int8.
        block: cut the blocks into smaller ones, so that linears with one input agree.
    """
    block = block or blocks.block
    nibbles = blocks.levels is not None
    scales, offsets = blocks.scales, blocks.offsets
    if blocks.block != block:
        scales = np.repeat(scales, blocks.block // block, axis=1)
        offsets = np.repeat(offsets, blocks.block // block, axis=1) if offsets is not None else None
    levels = np.zeros(0, np.uint8)
    if blocks.levels is not None:
        levels = np.ascontiguousarray(blocks.levels, np.float32)
        if fast:
            levels, unit = whole_levels(levels)
            scales = scales * np.float32(unit)
    d_out, d_in = blocks.codes.shape
    codes = _rows(blocks.codes)
    if nibbles:
        parts = codes.astype(np.uint8).reshape(-1, PANEL, d_in // 8, 2, 4)
        packed = (parts[..., 0, :] | parts[..., 1, :] << 4).transpose(0, 2, 1, 3)
    else:
        packed = codes.astype(np.int8).reshape(-1, PANEL, d_in // 4, 4).transpose(0, 2, 1, 3)
    return Panels(
        kind=f"{'fast' if fast else 'exact'}_{'nibbles' if nibbles else 'bytes'}",
        codes=np.ascontiguousarray(packed),
        scales=_by_panel(scales),
        offsets=_by_panel(offsets) if offsets is not None else None,
        levels=levels,
        block=block,
        d_in=d_in,
        d_out=d_out,
    )


def of_values(values: Array) -> Panels:
    """Pack [d_out, d_in] float32, or bfloat16 as uint16."""
    d_out, d_in = values.shape
    width = -(-d_in // CHUNK) * CHUNK
    padded = np.zeros((-(-d_out // PANEL) * PANEL, width), values.dtype)
    padded[:d_out, :d_in] = values
    panels = np.ascontiguousarray(padded.reshape(-1, PANEL, width).transpose(0, 2, 1))
    return Panels(
        kind="floats" if values.dtype == np.float32 else "halves",
        codes=panels,
        scales=np.ones((len(panels), 1, PANEL), np.float32),
        offsets=None,
        levels=np.zeros(0, np.uint8),
        block=width,
        d_in=width,
        d_out=d_out,
    )


class Memory:
    """Memory for arrays that steps read again and again; it only grows.

    Each begins with a cache line, as every vector of a panel then does: one that lies across two is read
    twice. They lie together in large blocks, which numpy asks the system to map in huge pages.
    """

    def __init__(self) -> None:
        self._blocks: list[Array] = []
        self._free = np.zeros(0, np.uint8)

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self._blocks)

    def keep(self, array: Array) -> Array:
        """A copy, for as long as this lives."""
        size = -(-array.nbytes // LINE) * LINE
        if size > len(self._free):
            block = np.empty(max(size, MEMORY_BLOCK) + LINE, np.uint8)
            self._blocks.append(block)
            start = -block.ctypes.data % LINE
            self._free = block[start : start + max(size, MEMORY_BLOCK)]
        found: Array = self._free[: array.nbytes].view(array.dtype).reshape(array.shape)
        self._free = self._free[size:]
        found[...] = array
        return found


def aligned_zeros(shape: Sequence[int], dtype: Any) -> Array:
    """Zeros that begin with a cache line: two threads that write to neighbouring panels would else take the
    line that they share from each other."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    found: Array = memory[start : start + size].view(dtype).reshape(shape)
    return found


def panel_bytes(linears: Array, offsets: Any = 0) -> int:
    """Of the weights of some records (`layout.LINEAR`, `layout.DOWN`), whose panels have offsets or not."""
    return int((linears["panels"] * (linears["codes_step"] + (1 + offsets) * linears["scales_step"])).sum())


def are_whole(levels: Array) -> bool:
    """Whether they are int8 as they are."""
    return bool(np.array_equal(levels, np.rint(levels)) and np.abs(levels).max() <= LARGEST)


def whole_levels(levels: Array) -> tuple[Array, float]:
    """Levels as int8 times a unit: the pair whose squared error is least. Whole ones are kept as they are."""
    if are_whole(levels):
        return levels.astype(np.int8), 1.0
    tops = np.linspace(LARGEST / 2, LARGEST, 4097)  # what the largest level becomes, before it is rounded
    whole = np.rint(levels * (tops / np.abs(levels).max())[:, None])
    units = (whole @ levels) / (whole**2).sum(-1)
    best = int(((whole * units[:, None] - levels) ** 2).sum(-1).argmin())
    return whole[best].astype(np.int8), float(units[best])


def _rows(codes: Array) -> Array:
    """Filled up to whole panels."""
    missing = -len(codes) % PANEL
    return np.pad(codes, ((0, missing), (0, 0))) if missing else codes


def _by_panel(values: Array) -> Array:
    """[d_out, blocks] -> [panels, blocks, 16] float32; what is filled up is 0."""
    rows = _rows(values.astype(np.float32))
    return np.ascontiguousarray(rows.reshape(-1, PANEL, rows.shape[1]).transpose(0, 2, 1))
