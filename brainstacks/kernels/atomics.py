"""What threads share memory by, and how compiled code calls an address: what numba has no words for."""

from __future__ import annotations

import platform
import time
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

I32, I64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def as_pointer(typing_context: Any, address: Any) -> Any:
    """int64 address -> void pointer, for `numba.carray`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@intrinsic
def call(typing_context: Any, address: Any, *arguments: Any) -> Any:
    """Call the `void f(int64, ...)` at `address`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, *values = args[:1] + tuple(cgutils.unpack_tuple(builder, args[1]))
        kind = ir.FunctionType(ir.VoidType(), [I64] * len(values))
        builder.call(builder.inttoptr(address, kind.as_pointer()), values)
        return context.get_dummy_value()

    return types.void(types.int64, types.StarArgTuple(arguments)), generate


@intrinsic
def load(typing_context: Any, address: Any) -> Any:
    """The int64 at `address`, and everything that was written before it was."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def store(typing_context: Any, address: Any, value: Any) -> Any:
    """Write an int64 to `address`, after everything that was written before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], builder.inttoptr(args[0], I64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def add(typing_context: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at `address`, atomically; what it was before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], I64.as_pointer()), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def swap(typing_context: Any, address: Any, old: Any, new: Any) -> Any:
    """Replace the int64 at `address` if it is `old`, atomically; whether it was."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = builder.inttoptr(args[0], I64.as_pointer())
        found = builder.cmpxchg(at, args[1], args[2], "acq_rel", "acquire")
        return builder.extract_value(found, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


@intrinsic
def pause(typing_context: Any) -> Any:
    """Tell the core that this is a loop that waits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if platform.machine() in ("x86_64", "AMD64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def give_way(typing_context: Any, function: Any) -> Any:
    """Call the `int sched_yield(void)` at the address `function`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(I32, [])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def now(typing_context: Any, function: Any) -> Any:
    """Nanoseconds since some moment, of the `int clock_gettime(int, struct timespec *)` at that address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        time_ = cgutils.alloca_once(builder, I64, size=2)
        kind = ir.FunctionType(I32, [I32, time_.type])
        clock = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(clock, [I32(time.CLOCK_MONOTONIC), time_])
        seconds, rest = (builder.load(builder.gep(time_, [I32(i)])) for i in (0, 1))
        return builder.add(builder.mul(seconds, I64(10**9)), rest)

    return types.int64(types.int64), generate
