"""The kinds of weights that tiles multiply with: how each lies in a panel and becomes numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from brainstacks.kernels.tiles import PANEL, Exact, Fast, Tile
from brainstacks.kernels.vectors import I8, I16, I32


class FastNibbles(Fast):
    """4-bit codes; `levels` are 16 int8."""

    def prepare(self) -> None:
        table = self.load(self.args["levels"], ir.VectorType(I8, 16))
        repeated = ir.Constant(ir.VectorType(I32, 4 * self.lanes), list(range(16)) * (self.lanes // 4))
        self.table = self.signed(self.b.shuffle_vector(table, table, repeated))

    def fours(self, index: Any) -> Iterator[tuple[int, Any]]:
        b = self.b
        pairs, mask = ir.VectorType(I16, 2 * self.lanes), self.all(self.bytes, 15)
        for k, at in self.parts(index, 8, 64):
            codes = self.load(at, self.bytes)
            shifted = b.bitcast(b.lshr(b.bitcast(codes, pairs), self.all(pairs, 4)), self.bytes)
            yield k, self.look_up(self.table, b.and_(codes, mask))
            yield k + 4, self.look_up(self.table, b.and_(shifted, mask))


class FastBytes(Fast):
    """8-bit codes, int8."""

    def fours(self, index: Any) -> Iterator[tuple[int, Any]]:
        for k, at in self.parts(index, 4, 64):
            yield k, self.signed(self.load(at, self.bytes))


class ExactNibbles(Exact):
    """4-bit codes; `levels` are 16 float32."""

    def prepare(self) -> None:
        at = self.args["levels"]
        self.low = self.load(at, self.f32)
        self.high = self.load(self.plus(at, 32), self.f32) if self.lanes == 8 else None

    def value(self, codes: Any) -> Any:
        """levels[lowest four bits of each lane]."""
        if self.high is None:
            return self.call("llvm.x86.avx512.permvar.sf.512", self.f32, self.low, codes)
        low, high = (
            self.call("llvm.x86.avx2.permps", self.f32, table, codes) for table in (self.low, self.high)
        )
        bit = self.b.and_(codes, self.all(self.i32, 8))
        return self.b.select(self.b.icmp_unsigned("!=", bit, self.all(self.i32, 0)), high, low)

    def ones(self, index: Any) -> Iterator[tuple[int, Any]]:
        for k, at in self.parts(index, 8, 64):
            codes = self.load(at, self.i32)
            for j in range(8):
                shift = 8 * (j % 4) + 4 * (j // 4)
                yield k + j, self.value(self.b.lshr(codes, self.all(self.i32, shift)))


class ExactBytes(Exact):
    """8-bit codes, -127..127 (or -128)."""

    def ones(self, index: Any) -> Iterator[tuple[int, Any]]:
        b = self.b
        for k, at in self.parts(index, 4, 64):
            codes = self.load(at, self.i32)
            for j in range(4):
                code = b.ashr(b.shl(codes, self.all(self.i32, 24 - 8 * j)), self.all(self.i32, 24))
                yield k + j, b.sitofp(code, self.f32)


class Floats(Exact):
    """float32 weights, [k, 16], in one block."""

    size = 4

    def weights(self, at: Any) -> Any:
        return self.load(at, self.f32)

    def ones(self, index: Any) -> Iterator[tuple[int, Any]]:
        for k, at in self.parts(index, 1, self.size * PANEL):
            yield k, self.weights(at)


class Halves(Floats):
    """bfloat16 weights, as `Floats`."""

    size = 2

    def weights(self, at: Any) -> Any:
        return self.load_halves(at)


KINDS: tuple[tuple[str, type[Tile]], ...] = (
    ("fast_nibbles", FastNibbles),
    ("fast_bytes", FastBytes),
    ("exact_nibbles", ExactNibbles),
    ("exact_bytes", ExactBytes),
    ("floats", Floats),
    ("halves", Halves),
)


@intrinsic(prefer_literal=True)
def tile(typing_context: Any, kind: Any, tokens: Any, *arguments: Any) -> Any:
    """`tile(kind, tokens, codes, scales, ..., count)`: an index into `KINDS` and the most tokens, both
    constants, then what `Tile` says, int64 each.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = tuple(cgutils.unpack_tuple(builder, args[2]))
        KINDS[kind.literal_value][1](builder, values, tokens.literal_value).emit()
        return context.get_dummy_value()

    plain = tuple(types.int64 for _ in arguments)
    return types.void(kind, tokens, types.StarArgTuple(plain)), generate
