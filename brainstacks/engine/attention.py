"""Attention of packed tokens over the slot cache, as transformers' attention function.

The tokens of all rows of a step lie in one row [1, T], so no work is spent on padding: decode rows first,
in slot order and one token each, then prefill rows. Without a `slots` argument (training, router passes,
plain logits) it is transformers' own SDPA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brainstacks.engine.kv_cache import SlotCache

IMPLEMENTATION = "brainstacks_slots"


@dataclass
class SlotContext:
    """What one step's attention needs, the same for every layer.

    Attributes:
        cache: keys and values.
        decode: number of decode rows n.
        decode_slots, decode_positions: [n] int64; the slot of each, and where its token goes.
        dense: the decode rows hold the slots 0..n-1, so that the cache is read in place.
        longest: tokens that the longest decode row attends to.
        prefill: (slot, start, count) of each prefill row, in order.
    """

    cache: SlotCache
    decode: int
    decode_slots: Tensor
    decode_positions: Tensor
    dense: bool
    longest: int
    prefill: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        self._masks: dict[int | None, Tensor] = {}

    def decode_mask(self, window: int | None) -> Tensor:
        """[n, 1, 1, longest] bool, true where a row may look: up to itself, and within `window`."""
        if window not in self._masks:
            keys = torch.arange(self.longest, device=self.decode_positions.device)
            distance = self.decode_positions[:, None] - keys
            mask = distance >= 0
            if window is not None:
                mask &= distance < window
            self._masks[window] = mask[:, None, None]
        return self._masks[window]


def slot_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    slots: SlotContext | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(q k^T * scaling) v of each row over its own slot; its new keys and values are stored first.

    Args:
        query: [1, H, T, D]; key, value: [1, H_kv, T, D].
        sliding_window: tokens that a layer looks back, itself included; None for all.

    Returns:
        [1, T, H, D], None.
    """
    if slots is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        kwargs.pop("dropout", None)
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    layer = module.layer_idx
    keys, values = slots.cache.keys[layer], slots.cache.values[layer]
    n = slots.decode
    parts = []
    if n:
        keys[slots.decode_slots, :, slots.decode_positions] = key[0, :, :n].transpose(0, 1)
        values[slots.decode_slots, :, slots.decode_positions] = value[0, :, :n].transpose(0, 1)
        parts.append(_decode(query[0, :, :n], keys, values, slots, scaling, sliding_window))
    offset = n
    for slot, start, count in slots.prefill:
        new = slice(offset, offset + count)
        keys[slot, :, start : start + count] = key[0, :, new]
        values[slot, :, start : start + count] = value[0, :, new]
        seen = slice(0, start + count)
        parts.append(
            _prefill(
                query[:, :, new],
                keys[slot : slot + 1, :, seen],
                values[slot : slot + 1, :, seen],
                start,
                scaling,
                sliding_window,
            )
        )
        offset += count
    return torch.cat(parts)[None], None


def _decode(
    query: Tensor, keys: Tensor, values: Tensor, slots: SlotContext, scaling: float | None, window: int | None
) -> Tensor:
    """One token per row: query [H, n, D] -> [n, H, D]. Query heads of one KV head go as its queries."""
    heads, n, dim = query.shape
    kv_heads = keys.shape[1]
    grouped = query.transpose(0, 1).reshape(n, kv_heads, heads // kv_heads, dim)
    rows = slice(n) if slots.dense else slots.decode_slots
    k, v = keys[rows, :, : slots.longest], values[rows, :, : slots.longest]
    out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=slots.decode_mask(window), scale=scaling)
    return out.reshape(n, heads, dim)


def _prefill(
    query: Tensor, keys: Tensor, values: Tensor, start: int, scaling: float | None, window: int | None
) -> Tensor:
    """A run of one row's tokens: query [1, H, t, D], keys [1, H_kv, start + t, D] -> [t, H, D]."""
    count, total = query.shape[2], keys.shape[2]
    mask = None
    if start > 0 or (window is not None and window < total):
        distance = torch.arange(start, total, device=query.device)[:, None] - torch.arange(
            total, device=query.device
        )
        mask = distance >= 0
        if window is not None:
            mask &= distance < window
    out = F.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None and count > 1,
        scale=scaling,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)


def register() -> None:
    """Make the implementation known to transformers."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, slot_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
