"""The inner loop of every product with the base's weights: one panel of 16 outputs, a few tokens, in vector
code.

    y[t, row] += sum_k w[row, k] x[t, k]        for the 16 rows of a panel and up to T tokens

A vector's lanes are the panel's rows, so nothing is summed across lanes, and every token's sum is added in
one order, whatever the number of tokens beside it. Weights lie in blocks along k that share a scale and an
offset:

    w = scale * value + offset,     value = levels[code] (4 bits) or code (8 bits)

`fast` multiplies int8 weights by int8 activations and adds in int32, which is exact; a block's sum is
scaled in float32. `exact` multiplies the very values in float32. What a panel looks like in memory, see
`panels.py`.

numba compiles loops, but does not know the instructions that make these fast, so this module writes LLVM's
own language, for the best of AVX-512 with VNNI, AVX with VNNI, and AVX2 that the CPU has. `generic.py` has
the same functions as plain loops, for all other CPUs and as the obvious form that these are tested against.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from brainstacks.cpu import Cpu, cpu

PANEL = 16
"""Outputs (rows of a weight) that lie together."""

CHUNK = 16
"""Inputs (k) that one turn of the inner loop takes; a block is a multiple of it."""

_I8, _I16, _I32, _I64, _F32 = (*(ir.IntType(bits) for bits in (8, 16, 32, 64)), ir.FloatType())


@dataclass(frozen=True)
class Isa:
    """Attributes:
    lanes: 32-bit numbers of a vector; 0 for plain loops.
    vnni: it multiplies bytes and adds four products to an int32 in one instruction.
    tokens: of one tile at most; what its registers hold.
    """

    name: str
    lanes: int
    vnni: bool
    tokens: int


def best(cpu: Cpu) -> Isa:
    """The fastest form that `cpu` can compute."""
    if cpu.has("avx512f", "avx512bw", "avx512vnni"):
        return Isa("avx512vnni", 16, vnni=True, tokens=8)
    if cpu.has("avx2", "fma", "f16c"):
        return Isa("avxvnni" if cpu.has("avxvnni") else "avx2", 8, vnni=cpu.has("avxvnni"), tokens=4)
    return Isa("generic", 0, vnni=False, tokens=4)


ISA = best(cpu())
"""Of this process."""

AHEAD = 6144
"""Bytes before its use that a weight is fetched: about a panel, where the processor's own guess ends."""

ZERO_POINT = 128
"""Added to an int8 so that it is an unsigned byte, which one side of an instruction's products must be."""


class _Tile:
    """The code of one tile, as far as all kinds of weights share it.

    Args, as the intrinsic gets them: `codes`, the panel's; `scales`, `offsets` [blocks, 16] float32,
    offsets 0 for none; `levels`, 16 of them; `x`, of the first token; `factors`, `sums` [tokens, blocks],
    see `quantise` in `activations.py`; `out` [tokens, >= 16] float32, which is added to. `*_stride`: bytes
    from token to token.
    """

    ARGUMENTS = (
        "codes", "scales", "offsets", "levels", "x", "x_stride", "factors", "sums", "block_stride",
        "out", "out_stride", "blocks", "chunks", "count",
    )  # fmt: skip

    def __init__(self, builder: Any, arguments: tuple[Any, ...], tokens: int) -> None:
        self.b = builder
        self.tokens = tokens
        self.args = dict(zip(self.ARGUMENTS, arguments, strict=True))
        self.lanes = ISA.lanes
        self.i32 = ir.VectorType(_I32, self.lanes)
        self.f32 = ir.VectorType(_F32, self.lanes)
        self.bytes = ir.VectorType(_I8, 4 * self.lanes)

    # --- instructions -----------------------------------------------------------------------------

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        signature = ir.FunctionType(result, [a.type for a in arguments])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, signature, name), arguments)

    def load(self, address: Any, kind: Any) -> Any:
        return self.b.load(self.b.inttoptr(address, kind.as_pointer()), align=1)

    def spread(self, value: Any, kind: Any) -> Any:
        """`value` in every lane."""
        vector = self.b.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
        zeros = ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count)
        return self.b.shuffle_vector(vector, ir.Constant(kind, ir.Undefined), zeros)

    def all(self, kind: Any, value: float) -> Any:
        return ir.Constant(kind, [value] * kind.count)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.call(f"llvm.fma.v{self.lanes}f32", self.f32, a, b, c)

    def prefetch(self, address: Any) -> None:
        pointer = self.b.inttoptr(address, _I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(self.b.module, kind, "llvm.prefetch.p0")
        self.b.call(function, [pointer, _I32(0), _I32(3), _I32(1)])  # for reading, into all caches, data

    def plus(self, address: Any, offset: int | Any) -> Any:
        return self.b.add(address, _I64(offset) if isinstance(offset, int) else offset)

    def dot(self, total: Any, unsigned: Any, signed: Any) -> Any:
        """total + the four products of bytes in each lane."""
        if ISA.vnni:
            return self.call(f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}", self.i32, total, unsigned, signed)
        pairs_type = ir.VectorType(_I16, 2 * self.lanes)
        pairs = self.call("llvm.x86.avx2.pmadd.ub.sw", pairs_type, unsigned, signed)
        return self.b.add(
            total, self.call("llvm.x86.avx2.pmadd.wd", self.i32, pairs, self.all(pairs_type, 1))
        )

    def look_up(self, table: Any, codes: Any) -> Any:
        """table[code] for bytes; the table is repeated in every 16 bytes."""
        name = "llvm.x86.avx512.pshuf.b.512" if self.lanes == 16 else "llvm.x86.avx2.pshuf.b"
        return self.call(name, self.bytes, table, codes)

    # --- the loops --------------------------------------------------------------------------------

    def emit(self) -> None:
        """For each half of the panel (one, where a vector holds all 16 rows): blocks, and in them chunks."""
        for half in range(PANEL // self.lanes):
            self.half = half
            self.emit_half()

    def emit_half(self) -> None:
        b, a = self.b, self.args
        rows = [self.token(t) for t in range(self.tokens)]
        outs = [
            self.plus(a["out"], b.add(b.mul(row, a["out_stride"]), _I64(4 * self.half * self.lanes)))
            for row in rows
        ]
        self.x = [b.add(a["x"], b.mul(row, a["x_stride"])) for row in rows]
        self.prepare()
        totals = [cgutils.alloca_once(b, self.f32) for _ in rows]
        for total, out in zip(totals, outs, strict=True):
            b.store(self.load(out, self.f32), total)
        with cgutils.for_range(b, a["blocks"], intp=_I64) as block:
            scale_at = b.mul(block.index, _I64(4 * PANEL))
            scale_at = self.plus(scale_at, 4 * self.half * self.lanes)
            factor_at = [b.add(b.mul(row, a["block_stride"]), b.mul(block.index, _I64(4))) for row in rows]
            sums = [cgutils.alloca_once(b, self.sum_type) for _ in rows]
            for total, at in zip(sums, factor_at, strict=True):
                b.store(self.first_sum(at), total)
            with cgutils.for_range(b, a["chunks"], intp=_I64) as chunk:
                index = b.add(b.mul(block.index, a["chunks"]), chunk.index)
                self.chunk(index, sums)
            scale = self.load(b.add(a["scales"], scale_at), self.f32)
            for total, found, at in zip(totals, sums, factor_at, strict=True):
                b.store(self.scaled(b.load(found), scale, at, b.load(total)), total)
            with b.if_then(b.icmp_signed("!=", a["offsets"], _I64(0))):
                offset = self.load(b.add(a["offsets"], scale_at), self.f32)
                for total, at in zip(totals, factor_at, strict=True):
                    mass = self.spread(self.mass(at), self.f32)
                    b.store(self.fma(offset, mass, b.load(total)), total)
        for total, out in zip(totals, outs, strict=True):
            b.store(b.load(total), b.inttoptr(out, self.f32.as_pointer()), align=1)

    def token(self, t: int) -> Any:
        """Index of the t-th token; beyond the last one the last again, which computes and stores the same."""
        if t == 0:
            return _I64(0)
        last = self.b.sub(self.args["count"], _I64(1))
        return self.b.select(self.b.icmp_signed("<", _I64(t), last), _I64(t), last)

    def parts(self, index: Any, width: int, size: int) -> list[tuple[int, Any]]:
        """The index-th chunk in parts of `width` k and `size` bytes: (first k, address) of each."""
        at = self.b.mul(index, _I64(CHUNK // width * size))
        at = self.plus(self.b.add(self.args["codes"], at), size // PANEL * self.half * self.lanes)
        for line in range(0, CHUNK // width * size, 64):
            self.prefetch(self.plus(at, AHEAD + line))
        return [(width * i, self.plus(at, size * i)) for i in range(CHUNK // width)]

    # --- what kinds of weights differ in ----------------------------------------------------------

    sum_type: Any
    """Of a block's sum."""

    def prepare(self) -> None:
        """What is loaded once."""

    def first_sum(self, at: Any) -> Any:
        return self.all(self.sum_type, 0)

    def chunk(self, index: Any, sums: list[Any]) -> None:
        """Add the products of the index-th 16 k of the panel."""
        raise NotImplementedError

    def scaled(self, found: Any, scale: Any, at: Any, total: Any) -> Any:
        """total + what a block's sum is worth."""
        raise NotImplementedError

    def mass(self, at: Any) -> Any:
        """The sum of a block's activations, which offsets are multiplied by."""
        raise NotImplementedError


class _Fast(_Tile):
    """int8 x int8. `factors` has each block's activation scale, `sums` -ZERO_POINT * its sum, int32."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sum_type = self.i32

    def chunk(self, index: Any, sums: list[Any]) -> None:
        at = self.b.mul(index, _I64(CHUNK))
        rows = [self.b.add(x, at) for x in self.x]
        for k, weights in self.fours(index):
            for row, total in zip(rows, sums, strict=True):
                four = self.spread(self.load(self.plus(row, k), _I32), self.i32)
                self.b.store(
                    self.product(self.b.load(total), weights, self.b.bitcast(four, self.bytes)), total
                )

    def fours(self, index: Any) -> Iterator[tuple[int, Any]]:
        """The weights of the index-th chunk, four k at a time: the first k, and what `product` takes."""
        raise NotImplementedError

    def first_sum(self, at: Any) -> Any:
        # Unsigned weights are too large by ZERO_POINT.
        return self.spread(self.zero_sum(at), self.i32) if ISA.vnni else super().first_sum(at)

    def product(self, total: Any, weights: Any, four: Any) -> Any:
        """total + weights * four: unsigned weights with VNNI; else signed ones, whose sign goes over to the
        activations, for AVX2 saturates where an unsigned byte is large."""
        if ISA.vnni:
            return self.dot(total, weights, four)
        size = self.call(f"llvm.abs.v{4 * self.lanes}i8", self.bytes, weights, ir.IntType(1)(0))
        return self.dot(total, size, self.call("llvm.x86.avx2.psign.b", self.bytes, four, weights))

    def signed(self, weights: Any) -> Any:
        """int8 -> what `product` takes."""
        return self.b.xor(weights, self.all(self.bytes, ZERO_POINT)) if ISA.vnni else weights

    def zero_sum(self, at: Any) -> Any:
        return self.load(self.b.add(self.args["sums"], at), _I32)

    def factor(self, at: Any) -> Any:
        return self.load(self.b.add(self.args["factors"], at), _F32)

    def scaled(self, found: Any, scale: Any, at: Any, total: Any) -> Any:
        both = self.b.fmul(scale, self.spread(self.factor(at), self.f32))
        return self.fma(self.b.sitofp(found, self.f32), both, total)

    def mass(self, at: Any) -> Any:
        sum_ = self.b.sitofp(self.zero_sum(at), _F32)
        return self.b.fmul(self.b.fmul(sum_, _F32(-1.0 / ZERO_POINT)), self.factor(at))


class FastNibbles(_Fast):
    """4-bit codes; `levels` are 16 int8."""

    def prepare(self) -> None:
        table = self.load(self.args["levels"], ir.VectorType(_I8, 16))
        repeated = ir.Constant(ir.VectorType(_I32, 4 * self.lanes), list(range(16)) * (self.lanes // 4))
        self.table = self.signed(self.b.shuffle_vector(table, table, repeated))

    def fours(self, index: Any) -> Iterator[tuple[int, Any]]:
        b = self.b
        pairs, mask = ir.VectorType(_I16, 2 * self.lanes), self.all(self.bytes, 15)
        for k, at in self.parts(index, 8, 64):
            codes = self.load(at, self.bytes)
            shifted = b.bitcast(b.lshr(b.bitcast(codes, pairs), self.all(pairs, 4)), self.bytes)
            yield k, self.look_up(self.table, b.and_(codes, mask))
            yield k + 4, self.look_up(self.table, b.and_(shifted, mask))


class FastBytes(_Fast):
    """8-bit codes, int8."""

    def fours(self, index: Any) -> Iterator[tuple[int, Any]]:
        for k, at in self.parts(index, 4, 64):
            yield k, self.signed(self.load(at, self.bytes))


class _Exact(_Tile):
    """float32 x float32. `sums` has the sum of a block's activations, float32; `factors` is not read."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sum_type = self.f32

    def chunk(self, index: Any, sums: list[Any]) -> None:
        at = self.b.mul(index, _I64(4 * CHUNK))
        rows = [self.b.add(x, at) for x in self.x]
        for k, weights in self.ones(index):
            for row, total in zip(rows, sums, strict=True):
                x = self.spread(self.load(self.plus(row, 4 * k), _F32), self.f32)
                self.b.store(self.fma(weights, x, self.b.load(total)), total)

    def ones(self, index: Any) -> Iterator[tuple[int, Any]]:
        """The weights of the index-th chunk, one k at a time, in order, as float32."""
        raise NotImplementedError

    def scaled(self, found: Any, scale: Any, at: Any, total: Any) -> Any:
        return self.fma(found, scale, total)

    def mass(self, at: Any) -> Any:
        return self.load(self.b.add(self.args["sums"], at), _F32)


class ExactNibbles(_Exact):
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


class ExactBytes(_Exact):
    """8-bit codes, -127..127 (or -128)."""

    def ones(self, index: Any) -> Iterator[tuple[int, Any]]:
        b = self.b
        for k, at in self.parts(index, 4, 64):
            codes = self.load(at, self.i32)
            for j in range(4):
                code = b.ashr(b.shl(codes, self.all(self.i32, 24 - 8 * j)), self.all(self.i32, 24))
                yield k + j, b.sitofp(code, self.f32)


class Floats(_Exact):
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
        bits = self.b.zext(self.load(at, ir.VectorType(_I16, self.lanes)), self.i32)
        return self.b.bitcast(self.b.shl(bits, self.all(self.i32, 16)), self.f32)


KINDS: tuple[tuple[str, type[_Tile]], ...] = (
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
    constants, then what `_Tile` says, int64 each.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = tuple(cgutils.unpack_tuple(builder, args[2]))
        KINDS[kind.literal_value][1](builder, values, tokens.literal_value).emit()
        return context.get_dummy_value()

    plain = tuple(types.int64 for _ in arguments)
    return types.void(kind, tokens, types.StarArgTuple(plain)), generate
