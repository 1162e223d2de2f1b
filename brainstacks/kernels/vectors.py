"""Vector instructions that numba does not know, in LLVM's own language: for the best of AVX-512 with VNNI,
AVX with VNNI, and AVX2 that the CPU has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from brainstacks.cpu import Cpu, cpu

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32 = ir.FloatType()


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

ZERO_POINT = 128
"""Added to an int8 so that it is an unsigned byte, which one side of an instruction's products must be."""


def prefetch(builder: Any, address: Any) -> None:
    """Ask for the cache line at `address`."""
    pointer = builder.inttoptr(address, I8.as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [pointer, I32(0), I32(3), I32(1)])  # for reading, into all caches, data


class Vectors:
    """Code on vectors of 32-bit numbers, written where `builder` stands."""

    def __init__(self, builder: Any) -> None:
        self.b = builder
        self.lanes = ISA.lanes
        self.i32 = ir.VectorType(I32, self.lanes)
        self.f32 = ir.VectorType(F32, self.lanes)
        self.bytes = ir.VectorType(I8, 4 * self.lanes)

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        signature = ir.FunctionType(result, [a.type for a in arguments])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, signature, name), arguments)

    def load(self, address: Any, kind: Any) -> Any:
        return self.b.load(self.b.inttoptr(address, kind.as_pointer()), align=1)

    def load_halves(self, address: Any) -> Any:
        """bfloat16 in memory, as float32."""
        bits = self.b.zext(self.load(address, ir.VectorType(I16, self.lanes)), self.i32)
        return self.b.bitcast(self.b.shl(bits, self.all(self.i32, 16)), self.f32)

    def spread(self, value: Any, kind: Any) -> Any:
        """`value` in every lane."""
        vector = self.b.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count)
        return self.b.shuffle_vector(vector, ir.Constant(kind, ir.Undefined), zeros)

    def all(self, kind: Any, value: float) -> Any:
        return ir.Constant(kind, [value] * kind.count)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.call(f"llvm.fma.v{self.lanes}f32", self.f32, a, b, c)

    def plus(self, address: Any, offset: int | Any) -> Any:
        return self.b.add(address, I64(offset) if isinstance(offset, int) else offset)

    def dot(self, total: Any, unsigned: Any, signed: Any) -> Any:
        """total + the four products of bytes in each lane."""
        if ISA.vnni:
            return self.call(f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}", self.i32, total, unsigned, signed)
        pairs_type = ir.VectorType(I16, 2 * self.lanes)
        pairs = self.call("llvm.x86.avx2.pmadd.ub.sw", pairs_type, unsigned, signed)
        return self.b.add(
            total, self.call("llvm.x86.avx2.pmadd.wd", self.i32, pairs, self.all(pairs_type, 1))
        )

    def look_up(self, table: Any, codes: Any) -> Any:
        """table[code] for bytes; the table is repeated in every 16 bytes."""
        name = "llvm.x86.avx512.pshuf.b.512" if self.lanes == 16 else "llvm.x86.avx2.pshuf.b"
        return self.call(name, self.bytes, table, codes)

    def product(self, total: Any, weights: Any, four: Any) -> Any:
        """total + weights * four: unsigned weights with VNNI; else signed ones, whose sign goes over to the
        activations, for AVX2 saturates where an unsigned byte is large."""
        if ISA.vnni:
            return self.dot(total, weights, four)
        size = self.call(f"llvm.abs.v{4 * self.lanes}i8", self.bytes, weights, I1(0))
        return self.dot(total, size, self.call("llvm.x86.avx2.psign.b", self.bytes, four, weights))

    def signed(self, weights: Any) -> Any:
        """int8 -> what `product` takes."""
        return self.b.xor(weights, self.all(self.bytes, ZERO_POINT)) if ISA.vnni else weights
