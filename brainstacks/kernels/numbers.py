"""Numbers in compiled loops: bfloat16, stored as uint16 and computed in float32; and an exponential."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from brainstacks.kernels import internal
from brainstacks.kernels.vectors import F32, I16, I32, I64, prefetch


@intrinsic
def widen(typing_context: Any, value: Any) -> Any:
    """uint16 (the bits of a bfloat16) or float32 -> float32, exactly."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if isinstance(signature.args[0], types.Float):
            return args[0]
        bits = builder.shl(builder.zext(args[0], I32), I32(16))
        return builder.bitcast(bits, F32)

    return types.float32(value), generate


@intrinsic
def narrow(typing_context: Any, value: Any, like: Any) -> Any:
    """float32 -> the type of `like`: float32 as it is, or the nearest bfloat16's bits (ties to even)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if isinstance(signature.args[1], types.Float):
            return args[0]
        bits = builder.bitcast(args[0], I32)
        high = builder.lshr(bits, I32(16))
        odd = builder.and_(high, I32(1))
        rounded = builder.lshr(builder.add(bits, builder.add(odd, I32(0x7FFF))), I32(16))
        nan = builder.fcmp_unordered("uno", args[0], args[0])
        quiet = builder.or_(high, I32(0x40))  # rounding could carry a NaN over into an infinity
        return builder.trunc(builder.select(nan, quiet, rounded), I16)

    return like(value, like), generate


@intrinsic
def larger(typing_context: Any, a: Any, b: Any) -> Any:
    """The larger of two float32, neither of them NaN: in a form of which the compiler makes vectors."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(F32, [F32, F32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.maxnum.f32")
        return builder.call(function, args, fastmath=("nnan", "nsz"))

    return types.float32(types.float32, types.float32), generate


@intrinsic
def nearest(typing_context: Any, value: Any) -> Any:
    """float32 -> the nearest int32, ties to even; of what no int32 holds, anything."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(F32, [F32])
        rounding = cgutils.get_or_insert_function(builder.module, kind, "llvm.rint.f32")
        return builder.fptosi(builder.call(rounding, args), I32)

    return types.int32(types.float32), generate


@intrinsic
def _power_of_two(typing_context: Any, n: Any) -> Any:
    """2^n as float32, for n in -126..127."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.shl(builder.add(args[0], I32(127)), I32(23)), F32)

    return types.float32(types.int32), generate


@internal(fastmath={"contract"})
def exponential(x):
    """e^x in float32 for x <= 0, to one unit in the last place; e^-87 below -87.

    exp(x) = 2^n exp(r) with |r| <= ln(2)/2 and a polynomial for exp(r) (the Cephes library's): plain
    arithmetic, of which the compiler makes vectors, as it cannot of a call to libm.
    """
    x = max(x, np.float32(-87.0))
    n = nearest(x * np.float32(1.44269504))
    r = x - np.float32(n) * np.float32(0.693359375)  # ln(2) in two parts: the first is exact in few bits
    r = r - np.float32(n) * np.float32(-2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    return (y * r * r + r + np.float32(1.0)) * _power_of_two(n)


@intrinsic(prefer_literal=True)
def room(typing_context: Any, count: Any) -> Any:
    """Address of `count` (a constant) int64s of any content, until the function that asks returns."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = cgutils.alloca_once(builder, I64, size=signature.args[0].literal_value)
        return builder.ptrtoint(found, I64)

    return types.int64(count), generate


@internal
def itemsize(dtype):
    """Bytes of a float32 or of a bfloat16 (uint16)."""
    return 4 if dtype is np.float32 else 2


@intrinsic
def _fetch_line(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        prefetch(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@internal
def fetch(address, size):
    """Ask for `size` bytes, so that all of them are under way before the first is needed."""
    for line in range(0, size, 64):
        _fetch_line(address + line)


ZERO = np.int64(0)
"""For arguments, and for what becomes one: numba compiles a function anew for each plain constant."""

# numba's own assignment to a slice brings the code that makes its error messages: seconds of compiling.


@internal
def fill(array, start, end, value):
    """array[start:end] = value, for an array [n]."""
    for i in range(np.uintp(start), np.uintp(end)):
        array[i] = value


@internal
def copy(source, start, target, at, count):
    """target[at : at + count] = source[start : start + count], for arrays [n]."""
    first, into = np.uintp(start), np.uintp(at)
    for i in range(np.uintp(count)):
        target[into + i] = source[first + i]
