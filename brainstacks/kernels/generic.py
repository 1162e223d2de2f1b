"""The products of `tiles.py` as plain loops: for CPUs without its instructions, and to test it against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from brainstacks.kernels import internal
from brainstacks.kernels.atomics import as_pointer
from brainstacks.kernels.numbers import widen
from brainstacks.kernels.tiles import CHUNK, PANEL
from brainstacks.kernels.vectors import ZERO_POINT

_FAR = 2**40
"""More elements than any panel has: the length of an array whose end the call does not know."""


@internal
def _nibble(codes, row, k):
    byte = np.int64(codes[(k // 8 * PANEL + row) * 4 + k % 4])
    return byte & 15 if k % 8 < 4 else byte >> 4


@internal
def fast_nibbles(codes, levels, row, k):
    table = carray(as_pointer(levels), (16,), np.int8)
    return np.int32(table[_nibble(carray(as_pointer(codes), (_FAR,), np.uint8), row, k)])


@internal
def exact_nibbles(codes, levels, row, k):
    table = carray(as_pointer(levels), (16,), np.float32)
    return table[_nibble(carray(as_pointer(codes), (_FAR,), np.uint8), row, k)]


@internal
def fast_bytes(codes, levels, row, k):
    return np.int32(carray(as_pointer(codes), (_FAR,), np.int8)[(k // 4 * PANEL + row) * 4 + k % 4])


@internal
def exact_bytes(codes, levels, row, k):
    return np.float32(carray(as_pointer(codes), (_FAR,), np.int8)[(k // 4 * PANEL + row) * 4 + k % 4])


@internal
def plain_floats(codes, levels, row, k):
    return carray(as_pointer(codes), (_FAR,), np.float32)[k * PANEL + row]


@internal
def plain_halves(codes, levels, row, k):
    return widen(carray(as_pointer(codes), (_FAR,), np.uint16)[k * PANEL + row])


VALUES = {
    "fast_nibbles": fast_nibbles,
    "fast_bytes": fast_bytes,
    "exact_nibbles": exact_nibbles,
    "exact_bytes": exact_bytes,
    "floats": plain_floats,
    "halves": plain_halves,
}

ITEMSIZES = {"fast_bytes": 1, "floats": 4, "halves": 2}
"""Bytes of a weight, where each has its own."""


def product(kind: str) -> Any:
    """The loops over a panel's rows, tokens and blocks, for weights of that kind; see `tiles.Tile`."""
    value, fast = VALUES[kind], kind.startswith("fast")

    @njit
    def plain(
        codes,
        scales,
        offsets,
        levels,
        x,
        x_step,
        factors,
        sums,
        block_step,
        start,
        out,
        out_step,
        blocks,
        chunks,
        rows,
        count,
        ahead,
        end,
    ):
        size = CHUNK * chunks
        scale_of = carray(as_pointer(scales), (blocks, PANEL), np.float32)
        for t in carray(as_pointer(rows), (count,), np.int64):
            target = carray(as_pointer(out + t * out_step), (PANEL,), np.float32)
            mass = carray(as_pointer(sums + t * block_step), (blocks,), np.float32)
            ints = carray(as_pointer(x + t * x_step), (blocks * size,), np.int8)
            zero = carray(as_pointer(sums + t * block_step), (blocks,), np.int32)
            factor = carray(as_pointer(factors + t * block_step), (blocks,), np.float32)
            wide = carray(as_pointer(x + t * x_step), (blocks * size,), np.float32)
            begin = carray(as_pointer(start if start else out + t * out_step), (PANEL,), np.float32)
            for row in range(PANEL):
                target[row] = begin[row]
                for b in range(blocks):
                    if fast:
                        whole = np.int32(0)
                        for k in range(b * size, (b + 1) * size):
                            whole += value(codes, levels, row, k) * np.int32(ints[k])
                        total = np.float32(whole) * factor[b]
                        weight = np.float32(zero[b]) * np.float32(-1.0 / ZERO_POINT) * factor[b]
                    else:
                        total = np.float32(0.0)
                        for k in range(b * size, (b + 1) * size):
                            total += value(codes, levels, row, k) * wide[k]
                        weight = mass[b]
                    target[row] += total * scale_of[b, row]
                    if offsets:
                        target[row] += (
                            carray(as_pointer(offsets), (blocks, PANEL), np.float32)[b, row] * weight
                        )

    return plain


def columns(kind: str) -> Any:
    """The loops over panels, rows and columns; see `columns.COLUMNS`."""
    value, fast, itemsize = VALUES[kind], kind.startswith("fast"), ITEMSIZES[kind]

    @njit
    def plain(weights, scales, panels, h, scale, zero, fours, out):
        count = 4 * fours
        size = PANEL * count * itemsize
        for panel in range(panels):
            at = weights + panel * size
            ints = carray(as_pointer(h), (count,), np.int8)
            wide = carray(as_pointer(h), (count,), np.float32)
            target = carray(as_pointer(out + 4 * PANEL * panel), (PANEL,), np.float32)
            for row in range(PANEL):
                if fast:
                    whole = np.int32(0)
                    for k in range(count):
                        whole += value(at, 0, row, k) * np.int32(ints[k])
                    factor = carray(as_pointer(scale), (1,), np.float32)[0]
                    scale_of = widen(carray(as_pointer(scales), (panels, PANEL), np.uint16)[panel, row])
                    total = np.float32(whole) * (scale_of * factor)
                else:
                    total = np.float32(0.0)
                    for k in range(count):
                        total += value(at, 0, row, k) * wide[k]
                target[row] += total

    return plain
