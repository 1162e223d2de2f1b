"""The kernel of attention over the paged cache: blocks are read where they lie, through each row's table.

A work item is a tile of one completion's tokens over a range of its keys (`work_list.py`), and a program
takes it for one KV head: the tile's tokens times the query heads of that KV head are the rows of its
products. The kernel is persistent and reads from memory how many items there are, so that no length decides
a launch.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from brainstacks.gpu_kernels.configuration import TYPES, Configuration
from brainstacks.gpu_kernels.launch import INTERPRETED, operator, programs
from brainstacks.gpu_kernels.partials import UNSEEN
from brainstacks.gpu_kernels.work_list import FIELDS

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize_on_alignment=("tables", "items", "total"))
def attend_kernel(
    query,
    keys,
    values,
    tables,
    items,
    total,
    out,
    sums,
    query_token,
    query_head,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    FIELDS: tl.constexpr,
    PARTIAL: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DIMS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    row = tl.arange(0, ROWS)
    lane = tl.arange(0, DIMS)
    dims = (lane < HEAD_DIM)[None, :]
    for work in range(tl.program_id(0), tl.load(total) * KV_HEADS, tl.num_programs(0)):
        item = work // KV_HEADS
        kv_head = work % KV_HEADS
        field = items + item * FIELDS
        table = tables + tl.load(field)
        token = tl.load(field + 1)
        count = tl.load(field + 2)
        position = tl.load(field + 3) + row // GROUP
        first = tl.load(field + 4)
        last = tl.load(field + 5)
        head = kv_head * GROUP + row % GROUP
        mine = row < count * GROUP
        stored = mine[:, None] & dims

        at = (token + row // GROUP).to(tl.int64) * query_token + head * query_head
        q = tl.load(query + at[:, None] + lane[None, :], mask=stored, other=0.0)
        best = tl.full((ROWS,), UNSEEN, tl.float32)
        weight = tl.zeros((ROWS,), tl.float32)
        mixed = tl.zeros((ROWS, DIMS), tl.float32)
        for key in range(first, last, KEYS):
            place = key + tl.arange(0, KEYS)
            there = place < last
            block = tl.load(table + place // BLOCK, mask=there, other=0).to(tl.int64)
            cell = ((block * KV_HEADS + kv_head) * BLOCK + place % BLOCK) * HEAD_DIM
            held = there[:, None] & dims
            k = tl.load(keys + cell[:, None] + lane[None, :], mask=held, other=0.0)
            v = tl.load(values + cell[:, None] + lane[None, :], mask=held, other=0.0)
            scores = _product(q, tl.trans(k), tl.zeros((ROWS, KEYS), tl.float32), UPCAST) * SCALE
            if SOFTCAP is not None:
                small = tl.exp(tl.abs(scores) * (-2.0 / SOFTCAP))
                tanh = (1.0 - small) / (1.0 + small)
                scores = SOFTCAP * tl.where(scores < 0, -tanh, tanh)
            seen = there[None, :] & (place[None, :] <= position[:, None])
            if WINDOW is not None:
                seen &= place[None, :] > position[:, None] - WINDOW
            scores = tl.where(seen, scores * LOG2E, UNSEEN)
            better = tl.maximum(best, tl.max(scores, 1))
            chances = tl.exp2(scores - better[:, None])
            faded = tl.exp2(best - better)
            weight = weight * faded + tl.sum(chances, 1)
            mixed = _product(chances.to(v.dtype), v, mixed * faded[:, None], UPCAST)
            best = better

        slot = (item if PARTIAL else token) + row // GROUP
        at = slot.to(tl.int64) * (KV_HEADS * GROUP) + head
        mixed = mixed / weight[:, None]
        tl.store(out + at[:, None] * HEAD_DIM + lane[None, :], mixed.to(out.dtype.element_ty), mask=stored)
        if PARTIAL:
            tl.store(sums + at, best + tl.log2(weight), mask=mine)


@triton.jit
def _product(a, b, added, UPCAST: tl.constexpr):
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc=added, input_precision="ieee")


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    items: Tensor,
    total: Tensor,
    out: Tensor,
    sums: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> None:
    heads, (kv_heads, block, head_dim) = query.shape[1], keys.shape[1:]
    made = configuration(
        query.dtype, heads, kv_heads, head_dim, block, scale, window, softcap, partial=sums is not None
    )
    attend_kernel[(programs(query.device),)](
        query, keys, values, tables, items, total, out, sums, *query.stride()[:2],
        **made.constants, **made.options,
    )  # fmt: skip


attend = operator(
    "attend(Tensor query, Tensor keys, Tensor values, Tensor tables, Tensor items, Tensor total, "
    "Tensor(a!) out, Tensor(b!)? sums, float scale, int? window, float? softcap) -> ()",
    _attend,
)
"""One launch; see `attention`. Outputs are partial where there are `sums`, and lie at their item's place."""


@cache
def configuration(
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    *,
    partial: bool,
) -> Configuration:
    """As `decode` launches it where outputs are partial, and `prefill` where they are not."""
    tile = tiling(heads // kv_heads, head_dim, dtype, partial=partial)
    name = TYPES[dtype]
    types = dict.fromkeys(("query", "keys", "values", "out"), f"*{name}")
    types |= dict.fromkeys(("tables", "items", "total"), "*i32")
    types |= dict.fromkeys(("query_token", "query_head"), "i32")
    if partial:
        types |= {"out": "*fp32", "sums": "*fp32"}
    return Configuration(
        f"attend, {'decode' if partial else 'prefill'}, {name}, head_dim {head_dim}",
        attend_kernel,
        types,
        {
            "SCALE": scale,
            "SOFTCAP": softcap,
            "WINDOW": window,
            "KV_HEADS": kv_heads,
            "GROUP": heads // kv_heads,
            "HEAD_DIM": head_dim,
            "BLOCK": block,
            "FIELDS": FIELDS,
            "PARTIAL": partial,
            "ROWS": tile.rows,
            "KEYS": tile.keys,
            "DIMS": _dims(head_dim),
            "UPCAST": INTERPRETED,
        },
        tile.warps,
        stages=3,
        unaligned=("tables", "items", "total"),
    )


class Tiling(NamedTuple):
    """Rows and keys of a product; warps that compute it."""

    rows: int
    keys: int
    warps: int


def tiling(group: int, head_dim: int, dtype: torch.dtype, *, partial: bool) -> Tiling:
    """No spills, and less than 99 KB of shared memory, from sm_80 to sm_100.

    Raises:
        ValueError: heads are too large.
    """
    dims = _dims(head_dim)
    if dims > 256:
        raise ValueError(f"heads have {head_dim} dimensions; the kernels take 256 at the most")
    if dtype == torch.float32:
        made = Tiling(16, min(32, 4096 // dims), 4) if partial else Tiling(32, 16, 8)
    elif partial:
        made = Tiling(16, min(128, 8192 // dims), 4)
    else:
        made = Tiling(128 if dims <= 128 else 64, 64 if dims <= 64 else 32, 8)
    return made._replace(rows=max(made.rows, triton.next_power_of_2(group)))


def _dims(head_dim: int) -> int:
    """Of a head, filled up to what products take."""
    return max(16, int(triton.next_power_of_2(head_dim)))
