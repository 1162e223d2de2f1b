"""Compiled loops on the OpenMP team that torch computes with.

A second team would fight the first for the cores: an idle team spins before it sleeps. So the compiled
functions of this package do not bring threads of their own; they hand their work to the `libgomp` that
torch has loaded. Where there is none (macOS), they run on the calling thread alone.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_I64 = ir.IntType(64)


@cache
def parallel_address() -> int:
    """Address of torch's `GOMP_parallel`, 0 where there is none."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return 0
    # Other packages bring a libgomp of their own, with teams of their own; only torch's will do.
    home = Path(torch.__file__).resolve().parent
    folders = (home / "lib", home.parent / "torch.libs")
    lines = [line for line in maps.read_text().splitlines() if "/libgomp" in line]
    loaded = {Path(line.split(maxsplit=5)[5]) for line in lines}
    found = sorted(str(path) for path in loaded if path.parent in folders)
    if not found:
        return 0
    return ctypes.cast(ctypes.CDLL(found[0]).GOMP_parallel, ctypes.c_void_p).value or 0


@intrinsic
def as_pointer(typing_context: Any, address: Any) -> Any:
    """int64 address -> void pointer, for `numba.carray`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@intrinsic
def run_parallel(typing_context: Any, parallel: Any, body: Any, argument: Any, threads: Any) -> Any:
    """`GOMP_parallel(body, argument, threads, 0)`: every thread of the team calls `body(argument)` once.

    Args (all int64): the addresses of `GOMP_parallel`, of a `void body(void *)` and of its argument; the
    number of threads. Without `GOMP_parallel`, or for one thread, `body` is called here.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        parallel_, body_, argument_, threads_ = args
        pointer = ir.IntType(8).as_pointer()
        unsigned = ir.IntType(32)
        task = ir.FunctionType(ir.VoidType(), [pointer])
        launch = ir.FunctionType(ir.VoidType(), [task.as_pointer(), pointer, unsigned, unsigned])
        work = builder.inttoptr(body_, task.as_pointer())
        data = builder.inttoptr(argument_, pointer)
        alone = builder.or_(
            builder.icmp_signed("==", parallel_, _I64(0)), builder.icmp_signed("<=", threads_, _I64(1))
        )
        with builder.if_else(alone) as (here, there):
            with here:
                builder.call(work, [data])
            with there:
                team = builder.inttoptr(parallel_, launch.as_pointer())
                builder.call(team, [work, data, builder.trunc(threads_, unsigned), unsigned(0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def claim(typing_context: Any, counter: Any) -> Any:
    """Take the next piece of work: the int64 at address `counter`, which is raised by one, atomically."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", address, _I64(1), "monotonic")

    return types.int64(types.int64), generate
