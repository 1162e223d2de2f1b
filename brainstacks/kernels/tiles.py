"""The inner loop of every product with the base's weights: one panel of 16 outputs, a few tokens, in vector
code.

    y[t, row] = start[row] + sum_k w[row, k] x[t, k]        for the 16 rows of a panel and up to T tokens

A vector's lanes are the panel's rows, so nothing is summed across lanes, and every token's sum is added in
one order, whatever the number of tokens beside it. Weights lie in blocks along k that share a scale and an
offset:

    w = scale * value + offset,     value = levels[code] (4 bits) or code (8 bits)

`fast` multiplies int8 weights by int8 activations and adds in int32, which is exact; a block's sum is
scaled in float32. `exact` multiplies the very values in float32. What a panel looks like in memory, see
`panels.py`.

`generic.py` has the same functions as plain loops, for CPUs without vectors and as the obvious form that
these are tested against.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from numba.core import cgutils

from brainstacks.kernels.vectors import F32, I32, I64, ISA, ZERO_POINT, Vectors, prefetch

PANEL = 16
"""Outputs (rows of a weight) that lie together."""

CHUNK = 16
"""Inputs (k) that one turn of the inner loop takes; a block is a multiple of it."""


class Tile(Vectors, ABC):
    """The code of one tile, as far as all kinds of weights share it.

    Args, as the intrinsic gets them: `codes`, the panel's; `scales`, `offsets` [blocks, 16] float32,
    offsets 0 for none; `levels`, 16 of them; `x`; `factors`, `sums` [tokens, blocks], see `quantise` in
    `activations.py`; `start` [16] float32, what every token's sums begin with, or 0 for what is in `out`
    [tokens, >= 16] float32. `*_stride`: bytes from token to token; `rows` [count] int64: which tokens;
    `ahead`: bytes before its use that a weight is fetched; `end`: the last address that is.
    """

    ARGUMENTS = (
        "codes", "scales", "offsets", "levels", "x", "x_stride", "factors", "sums", "block_stride",
        "start", "out", "out_stride", "blocks", "chunks", "rows", "count", "ahead", "end",
    )  # fmt: skip

    def __init__(self, builder: Any, arguments: tuple[Any, ...], tokens: int) -> None:
        super().__init__(builder)
        self.tokens = tokens
        self.args = dict(zip(self.ARGUMENTS, arguments, strict=True))

    def emit(self) -> None:
        """For each half of the panel (one, where a vector holds all 16 rows): blocks, and in them chunks."""
        for half in range(PANEL // self.lanes):
            self.half = half
            self.emit_half()

    def emit_half(self) -> None:
        b, a = self.b, self.args
        rows = [self.token(t) for t in range(self.tokens)]
        outs = [
            self.plus(a["out"], b.add(b.mul(row, a["out_stride"]), I64(4 * self.half * self.lanes)))
            for row in rows
        ]
        self.x = [b.add(a["x"], b.mul(row, a["x_stride"])) for row in rows]
        self.prepare()
        totals = [cgutils.alloca_once(b, self.f32) for _ in rows]
        with b.if_else(b.icmp_signed("!=", a["start"], I64(0))) as (given, found):
            with given:
                start = self.load(self.plus(a["start"], 4 * self.half * self.lanes), self.f32)
                for total in totals:
                    b.store(start, total)
            with found:
                for total, out in zip(totals, outs, strict=True):
                    b.store(self.load(out, self.f32), total)
        with cgutils.for_range(b, a["blocks"], intp=I64) as block:
            scale_at = b.mul(block.index, I64(4 * PANEL))
            scale_at = self.plus(scale_at, 4 * self.half * self.lanes)
            factor_at = [b.add(b.mul(row, a["block_stride"]), b.mul(block.index, I64(4))) for row in rows]
            sums = [cgutils.alloca_once(b, self.sum_type) for _ in rows]
            for total, at in zip(sums, factor_at, strict=True):
                b.store(self.first_sum(at), total)
            with cgutils.for_range(b, a["chunks"], intp=I64) as chunk:
                index = b.add(b.mul(block.index, a["chunks"]), chunk.index)
                self.chunk(index, sums)
            scale = self.load(b.add(a["scales"], scale_at), self.f32)
            for total, found, at in zip(totals, sums, factor_at, strict=True):
                b.store(self.scaled(b.load(found), scale, at, b.load(total)), total)
            with b.if_then(b.icmp_signed("!=", a["offsets"], I64(0))):
                offset = self.load(b.add(a["offsets"], scale_at), self.f32)
                for total, at in zip(totals, factor_at, strict=True):
                    mass = self.spread(self.mass(at), self.f32)
                    b.store(self.fma(offset, mass, b.load(total)), total)
        for total, out in zip(totals, outs, strict=True):
            b.store(b.load(total), b.inttoptr(out, self.f32.as_pointer()), align=1)

    def token(self, t: int) -> Any:
        """The t-th token; beyond the last one the last again, which computes and stores the same."""
        last = self.b.sub(self.args["count"], I64(1))
        at = self.b.select(self.b.icmp_signed("<", I64(t), last), I64(t), last)
        return self.load(self.b.add(self.args["rows"], self.b.mul(at, I64(8))), I64)

    def parts(self, index: Any, width: int, size: int) -> list[tuple[int, Any]]:
        """The index-th chunk in parts of `width` k and `size` bytes: (first k, address) of each."""
        at = self.b.mul(index, I64(CHUNK // width * size))
        at = self.plus(self.b.add(self.args["codes"], at), size // PANEL * self.half * self.lanes)
        for line in range(0, CHUNK // width * size, 64):
            wanted = self.plus(self.plus(at, line), self.args["ahead"])
            there = self.b.icmp_signed("<", wanted, self.args["end"])
            prefetch(self.b, self.b.select(there, wanted, self.args["end"]))
        return [(width * i, self.plus(at, size * i)) for i in range(CHUNK // width)]

    # --- what kinds of weights differ in ----------------------------------------------------------

    sum_type: Any
    """Of a block's sum."""

    def prepare(self) -> None:
        """What is loaded once."""

    def first_sum(self, at: Any) -> Any:
        return self.all(self.sum_type, 0)

    @abstractmethod
    def chunk(self, index: Any, sums: list[Any]) -> None:
        """Add the products of the index-th 16 k of the panel."""

    @abstractmethod
    def scaled(self, found: Any, scale: Any, at: Any, total: Any) -> Any:
        """total + what a block's sum is worth."""

    @abstractmethod
    def mass(self, at: Any) -> Any:
        """The sum of a block's activations, which offsets are multiplied by."""


class Fast(Tile):
    """int8 x int8. `factors` has each block's activation scale, `sums` -ZERO_POINT * its sum, int32."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sum_type = self.i32

    def chunk(self, index: Any, sums: list[Any]) -> None:
        at = self.b.mul(index, I64(CHUNK))
        rows = [self.b.add(x, at) for x in self.x]
        for k, weights in self.fours(index):
            for row, total in zip(rows, sums, strict=True):
                four = self.spread(self.load(self.plus(row, k), I32), self.i32)
                self.b.store(
                    self.product(self.b.load(total), weights, self.b.bitcast(four, self.bytes)), total
                )

    @abstractmethod
    def fours(self, index: Any) -> Iterator[tuple[int, Any]]:
        """The weights of the index-th chunk, four k at a time: the first k, and what `product` takes."""

    def first_sum(self, at: Any) -> Any:
        # Unsigned weights are too large by ZERO_POINT.
        return self.spread(self.zero_sum(at), self.i32) if ISA.vnni else super().first_sum(at)

    def zero_sum(self, at: Any) -> Any:
        return self.load(self.b.add(self.args["sums"], at), I32)

    def factor(self, at: Any) -> Any:
        return self.load(self.b.add(self.args["factors"], at), F32)

    def scaled(self, found: Any, scale: Any, at: Any, total: Any) -> Any:
        both = self.b.fmul(scale, self.spread(self.factor(at), self.f32))
        return self.fma(self.b.sitofp(found, self.f32), both, total)

    def mass(self, at: Any) -> Any:
        sum_ = self.b.sitofp(self.zero_sum(at), F32)
        return self.b.fmul(self.b.fmul(sum_, F32(-1.0 / ZERO_POINT)), self.factor(at))


class Exact(Tile):
    """float32 x float32. `sums` has the sum of a block's activations, float32; `factors` is not read."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sum_type = self.f32

    def chunk(self, index: Any, sums: list[Any]) -> None:
        at = self.b.mul(index, I64(4 * CHUNK))
        rows = [self.b.add(x, at) for x in self.x]
        for k, weights in self.ones(index):
            for row, total in zip(rows, sums, strict=True):
                x = self.spread(self.load(self.plus(row, 4 * k), F32), self.f32)
                self.b.store(self.fma(weights, x, self.b.load(total)), total)

    @abstractmethod
    def ones(self, index: Any) -> Iterator[tuple[int, Any]]:
        """The weights of the index-th chunk, one k at a time, in order, as float32."""

    def scaled(self, found: Any, scale: Any, at: Any, total: Any) -> Any:
        return self.fma(found, scale, total)

    def mass(self, at: Any) -> Any:
        return self.load(self.b.add(self.args["sums"], at), F32)
