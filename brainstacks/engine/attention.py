"""Attention of packed tokens over the paged cache, as transformers' attention function.

The tokens of all rows of a step lie in one row [1, T], so no work is spent on padding: decode rows first, one
token each, then prefill rows. Without a `paged` argument (training, plain logits) it is transformers' own
SDPA.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brainstacks.engine.block_pool import BLOCK_TOKENS, blocks_for
from brainstacks.engine.kv_cache import PagedCache
from brainstacks.kernels.attention import paged_decode, supports

IMPLEMENTATION = "brainstacks_paged"


@dataclass(eq=False)
class DecodeGroup:
    """Rows first..last of the decode rows, whose lengths are alike.

    Attributes:
        blocks: [g, m] int64, the blocks of each row; beyond its own, any.
        distance: [g, m * BLOCK_TOKENS] int64, how far back from the row's new token; negative ahead of it.
    """

    first: int
    last: int
    blocks: Tensor
    distance: Tensor
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor:
        """[g, 1, 1, m * BLOCK_TOKENS] bool, true where a row looks."""
        if window not in self.masks:
            made = self.distance >= 0 if window is None else (self.distance >= 0) & (self.distance < window)
            self.masks[window] = made[:, None, None]
        return self.masks[window]


@dataclass(frozen=True)
class DecodeRows:
    """n rows of one token each.

    Attributes:
        blocks: [n, m] int32, the blocks of each row; beyond its own, any.
        lengths: [n] int32, tokens that each row attends to, its new one included.
        runs: lengths of the runs of neighbours that share a group; they sum up to n.
    """

    blocks: Tensor
    lengths: Tensor
    runs: tuple[int, ...]

    @cached_property
    def groups(self) -> tuple[DecodeGroup, ...]:
        made = []
        first = 0
        for run in self.runs:
            within = slice(first, first + run)
            lengths = self.lengths[within, None]
            blocks = self.blocks[within, : blocks_for(int(lengths.max()))].long()
            ahead = torch.arange(blocks.shape[1] * BLOCK_TOKENS, device=blocks.device)
            made.append(DecodeGroup(first, first + run, blocks, lengths - 1 - ahead))
            first += run
        return tuple(made)


@dataclass(eq=False)
class PrefillRow:
    """A run of one sequence's tokens.

    Attributes:
        blocks: [m] int64, the sequence's blocks up to the last of these tokens.
        start, count: position of the first token; how many.
    """

    blocks: Tensor
    start: int
    count: int
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def first_block(self, window: int | None) -> int:
        """The first block that a layer with this window looks at."""
        return 0 if window is None else max(0, self.start - window + 1) // BLOCK_TOKENS

    def mask(self, window: int | None) -> Tensor | None:
        """[count, keys from the first block on] bool, true where to look; None where plain causality does."""
        if window not in self.masks:
            end = self.start + self.count
            made = None
            if self.start > 0 or (window is not None and window < end):
                keys = torch.arange(self.first_block(window) * BLOCK_TOKENS, end, device=self.blocks.device)
                distance = torch.arange(self.start, end, device=self.blocks.device)[:, None] - keys
                made = distance >= 0
                if window is not None:
                    made &= distance < window
            self.masks[window] = made
        return self.masks[window]


@dataclass(frozen=True)
class PagedContext:
    """What one step's attention needs, the same for every layer.

    Attributes:
        blocks, offsets: [T] int64, where each packed token's keys and values go.
        decode: None where there is no decode row.
    """

    cache: PagedCache
    blocks: Tensor
    offsets: Tensor
    decode: DecodeRows | None
    prefill: tuple[PrefillRow, ...]


def paged_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    paged: PagedContext | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(q k^T * scaling) v of each row over its own blocks; new keys and values are stored first.

    Args:
        query: [1, H, T, D]; key, value: [1, H_kv, T, D].
        sliding_window: tokens that a layer looks back, itself included; None for all.

    Returns:
        [1, T, H, D], None.
    """
    if paged is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        kwargs.pop("dropout", None)
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    layer = module.layer_idx
    q, k, v = query[0], key[0], value[0]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    parts = []
    n = 0
    if paged.decode is not None:
        n = paged.decode.lengths.shape[0]
        parts.append(decode(q[:, :n], k[:, :n], v[:, :n], paged, layer, scale, sliding_window))
    if paged.prefill:
        _store(k[:, n:], v[:, n:], paged, layer, slice(n, None))
    for row in paged.prefill:
        new = slice(n, n + row.count)
        parts.append(
            _prefill(q[:, new], k[:, new], v[:, new], row, paged.cache, layer, scale, sliding_window)
        )
        n += row.count
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out[None], None


def _store(key: Tensor, value: Tensor, paged: PagedContext, layer: int, tokens: slice) -> None:
    """Write keys and values [H_kv, t, D] of some packed tokens to their blocks."""
    blocks, offsets = paged.blocks[tokens], paged.offsets[tokens]
    paged.cache.keys[layer][blocks, :, offsets] = key.transpose(0, 1)
    paged.cache.values[layer][blocks, :, offsets] = value.transpose(0, 1)


def decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    paged: PagedContext,
    layer: int,
    scale: float,
    window: int | None,
) -> Tensor:
    """Store and attend, for the decode rows: query [H, n, D], key and value [H_kv, n, D] -> [n, H, D]."""
    rows, cache = paged.decode, paged.cache
    if rows is None:
        raise ValueError("there is no decode row")
    if supports(query):
        keys, values = cache.keys[layer], cache.values[layer]
        return paged_decode(query, key, value, keys, values, rows.blocks, rows.lengths, scale, window)
    _store(key, value, paged, layer, slice(query.shape[1]))
    parts = [_decode(query[:, g.first : g.last], g, cache, layer, scale, window) for g in rows.groups]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _decode(
    query: Tensor, group: DecodeGroup, cache: PagedCache, layer: int, scale: float, window: int | None
) -> Tensor:
    """Over as many blocks as the longest row of the group has: query [H, g, D] -> [g, H, D]."""
    ahead = (group.distance < 0)[:, None, :, None]

    def gathered(tensor: Tensor) -> Tensor:
        held = tensor[group.blocks].transpose(1, 2).flatten(2, 3)  # [g, H_kv, m * BLOCK_TOKENS, D]
        # A masked position still multiplies what it holds by 0, and 0 * NaN is NaN.
        return held.masked_fill(ahead, 0.0)

    keys, values = gathered(cache.keys[layer]), gathered(cache.values[layer])
    heads, count, dim = query.shape
    # Query heads of one KV head go as its queries.
    grouped = query.transpose(0, 1).reshape(count, keys.shape[1], -1, dim)
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=group.mask(window), scale=scale)
    return out.reshape(count, heads, dim)


def _prefill(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row: PrefillRow,
    cache: PagedCache,
    layer: int,
    scale: float,
    window: int | None,
) -> Tensor:
    """A run of one row's tokens: query [H, t, D], key and value [H_kv, t, D] -> [t, H, D]."""
    if row.start > 0:
        first = row.first_block(window)
        blocks, seen = row.blocks[first:], row.start + row.count - first * BLOCK_TOKENS
        key, value = (
            t[blocks].transpose(0, 1).flatten(1, 2)[:, :seen]
            for t in (cache.keys[layer], cache.values[layer])
        )
    mask = row.mask(window)
    out = F.scaled_dot_product_attention(
        query[None],
        key[None],
        value[None],
        attn_mask=mask,
        is_causal=mask is None and row.count > 1,
        scale=scale,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)


def register() -> None:
    """Make the implementation known to transformers."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, paged_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
