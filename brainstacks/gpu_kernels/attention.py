"""Attention of a step over the paged cache, as the `cuda` backend calls it for each layer.

    out[t, h] = sum_j p_j v_j,   p = softmax_j(scale * q k_j),   t - window < j <= t

over the positions j of t's own completion; with a soft cap, p = softmax_j(cap * tanh(scale * q k_j / cap)).

An item of prefill has all its keys. One of decode has a chunk of a row's, and gives a partial output; those
of a row are then combined.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from brainstacks.gpu_kernels import attention_kernel, kv_store, partials
from brainstacks.gpu_kernels.attention_kernel import attend, tiling
from brainstacks.gpu_kernels.configuration import TYPES, Configuration
from brainstacks.gpu_kernels.partials import Partials, combine


def decode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    items: Tensor,
    ends: Tensor,
    partials: Partials,
    out: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> None:
    """Attention of decode rows, one token each and the first of the step, in two launches.

    A row's result depends on its own query and keys alone, to the last bit.

    Args:
        query: [T, heads, head_dim] bfloat16, float16 or float32, of any strides but 1 for the last.
        keys, values: [blocks, kv_heads, block_tokens, head_dim], of one layer, contiguous, of the query's
            dtype. What is beyond a row's own tokens is not read.
        tables: [m] int32, the blocks of each row, which lie side by side.
        items, ends: as `work_list.write_decode_items` wrote them for this window.
        partials: with room for `items`.
        out: [T, heads, head_dim] of the query's dtype, contiguous; written for the decode rows.
        scale: of the scores.
        window: tokens that the layer looks back, the new one included; None for all.
        softcap: that scores come near and do not pass; None for none.

    Raises:
        ValueError: no kernel computes heads of this size, dtype or layout.
    """
    _check(query, keys)
    total = ends.narrow(0, -1, 1)
    attend(query, keys, values, tables, items, total, partials.outputs, partials.sums, scale, window, softcap)
    combine(partials.outputs, partials.sums, ends, out)


def prefill(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    items: Tensor,
    total: Tensor,
    out: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> None:
    """Attention of runs of tokens, whose own keys and values are in the cache too, in one launch.

    Args:
        items, total: as `work_list.write_prefill_items` wrote them for this window and `prefill_tile`.
        out: [T, heads, head_dim]; written for the tokens of the runs.
        others: as `decode` has them.

    Raises:
        ValueError: no kernel computes heads of this size, dtype or layout.
    """
    _check(query, keys)
    attend(query, keys, values, tables, items, total, out, None, scale, window, softcap)


def prefill_tile(group: int, head_dim: int, dtype: torch.dtype) -> int:
    """Tokens of an item of prefill, where so many query heads share a KV head."""
    return tiling(group, head_dim, dtype, partial=False).rows // group


def _check(query: Tensor, keys: Tensor) -> None:
    if query.dtype not in TYPES or query.dtype != keys.dtype:
        raise ValueError(
            f"queries are {query.dtype} and keys {keys.dtype}; the kernels take one of "
            f"{', '.join(map(str, TYPES))} for both"
        )
    if query.stride(-1) != 1:
        raise ValueError(f"a query's dimensions are {query.stride(-1)} apart; they must lie side by side")


def configurations(
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block: int,
    window: int | None = None,
    softcap: float | None = None,
) -> Iterator[Configuration]:
    """All kernels of such a layer's attention, as they are launched."""
    yield kv_store.configuration(dtype, kv_heads, head_dim, block)
    for partial in (True, False):
        yield attention_kernel.configuration(
            dtype, heads, kv_heads, head_dim, block, head_dim**-0.5, window, softcap, partial=partial
        )
    yield partials.configuration(dtype, heads, head_dim)
