"""What chunks of a decode row's keys gave, and their sum.

    out = sum_c o_c 2^(s_c - S),   S = log2 sum_c 2^s_c

for the outputs o_c of the row's chunks, each normalised by itself, and the base-2 logarithms s_c of what each
was divided by.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from brainstacks.gpu_kernels.configuration import TYPES, Configuration
from brainstacks.gpu_kernels.launch import operator, programs

UNSEEN = tl.constexpr(-1.0e30)
"""Score of what is not looked at. Finite, so that two of them have a difference; what was added up before
anything was seen is multiplied by zero once something is."""

WARPS = 4
TILE = 16
"""Chunks that are read at a time."""


@dataclass(frozen=True)
class Partials:
    """Room for the partial outputs of a step's items; every layer uses it anew.

    Attributes:
        outputs: [items, heads, head_dim] float32.
        sums: [items, heads] float32.
    """

    outputs: Tensor
    sums: Tensor

    @classmethod
    def empty(cls, items: int, heads: int, head_dim: int, device: torch.device) -> Partials:
        """For `work_list.decode_capacity` items."""
        return cls(
            torch.empty(items, heads, head_dim, device=device), torch.empty(items, heads, device=device)
        )


@triton.jit(do_not_specialize=("rows",), do_not_specialize_on_alignment=("ends",))
def combine_kernel(
    outputs,
    sums,
    ends,
    out,
    rows,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    TILE: tl.constexpr,
):
    lane = tl.arange(0, DIMS)
    dims = lane < HEAD_DIM
    for work in range(tl.program_id(0), rows * HEADS, tl.num_programs(0)):
        row = work // HEADS
        head = work % HEADS
        first = tl.load(ends + row)
        last = tl.load(ends + row + 1)
        if first < last:
            best = tl.full((), UNSEEN, tl.float32)
            weight = tl.zeros((), tl.float32)
            mixed = tl.zeros((DIMS,), tl.float32)
            for item in range(first, last, TILE):
                chunk = item + tl.arange(0, TILE)
                there = chunk < last
                at = chunk.to(tl.int64) * HEADS + head
                s = tl.load(sums + at, mask=there, other=UNSEEN)
                part = tl.load(
                    outputs + at[:, None] * HEAD_DIM + lane[None, :],
                    mask=there[:, None] & dims[None, :],
                    other=0.0,
                )
                better = tl.maximum(best, tl.max(s, 0))
                share = tl.exp2(s - better)
                faded = tl.exp2(best - better)
                weight = weight * faded + tl.sum(share, 0)
                mixed = mixed * faded + tl.sum(share[:, None] * part, 0)
                best = better
            total = (mixed / weight).to(out.dtype.element_ty)
            tl.store(out + (row.to(tl.int64) * HEADS + head) * HEAD_DIM + lane, total, mask=dims)


def _combine(outputs: Tensor, sums: Tensor, ends: Tensor, out: Tensor) -> None:
    _, heads, head_dim = outputs.shape
    combine_kernel[(programs(out.device),)](
        outputs, sums, ends, out, len(ends) - 1, **_constants(heads, head_dim), num_warps=WARPS
    )


combine = operator("combine(Tensor outputs, Tensor sums, Tensor ends, Tensor(a!) out) -> ()", _combine)
"""out[r] = the sum above over the items ends[r] to ends[r + 1]; a row that has none is left as it is.

Args:
    outputs, sums: of `Partials`.
    ends: [R + 1] int32.
    out: [T, heads, head_dim], contiguous; the rows that have items are its first.
"""


def _constants(heads: int, head_dim: int) -> dict[str, int]:
    return {"HEADS": heads, "HEAD_DIM": head_dim, "DIMS": triton.next_power_of_2(head_dim), "TILE": TILE}


def configuration(dtype: torch.dtype, heads: int, head_dim: int) -> Configuration:
    """As `combine` launches it for an output of `dtype`."""
    return Configuration(
        f"combine, {TYPES[dtype]}, head_dim {head_dim}",
        combine_kernel,
        {"outputs": "*fp32", "sums": "*fp32", "ends": "*i32", "out": f"*{TYPES[dtype]}", "rows": "i32"},
        _constants(heads, head_dim),
        WARPS,
        stages=3,
        unaligned=("ends", "rows"),
    )
