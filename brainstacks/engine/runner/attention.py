"""Attention of packed tokens over the paged cache, as transformers' attention function: the `torch`
backend's.

The tokens of all rows of a step lie in one row [1, T], so no work is spent on padding: decode rows first, one
token each, then prefill rows. Without a `paged` argument (training, plain logits) it is transformers' own
SDPA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brainstacks.engine.block_manager import BLOCK_TOKENS, blocks_for
from brainstacks.engine.runner.batch import Span, StepBatch
from brainstacks.engine.runner.kv_cache import PagedCache
from brainstacks.errors import UnsupportedModel

IMPLEMENTATION = "brainstacks_paged"

NO_EFFECT = frozenset({"dropout", "position_ids", "use_cache"})
"""What transformers passes on that changes nothing in a paged step."""


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


@dataclass(eq=False)
class PrefillRow:
    """A run of one completion's tokens.

    Attributes:
        blocks: [m] int64, the completion's blocks up to the last of these tokens.
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
class Rules:
    """Of one layer.

    Attributes:
        scale: of the scores.
        window: tokens that it looks back, itself included; None for all.
        softcap: that scores come near and do not pass, cap * tanh(score / cap); None for none.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None


class PagedAttention(Protocol):
    """Attention of a step's tokens, as its backend computes it; see `paged_attention`."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        """Store the new keys and values, then attend.

        Args:
            query: [H, T, D]; key, value: [H_kv, T, D].

        Returns:
            [T, H, D].
        """


@dataclass(frozen=True)
class PagedContext:
    """What one step's attention needs, the same for every layer.

    Attributes:
        blocks, offsets: [T] int64, where each packed token's keys and values go.
        decode: neighbouring decode rows, which come before all else.
    """

    cache: PagedCache
    blocks: Tensor
    offsets: Tensor
    decode: tuple[DecodeGroup, ...]
    prefill: tuple[PrefillRow, ...]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        """By PyTorch's own operations; see `PagedAttention`."""
        self.cache.write(layer, self.blocks, self.offsets, key, value)
        parts = [_decode(query[:, g.first : g.last], g, self.cache, layer, rules) for g in self.decode]
        n = self.decode[-1].last if self.decode else 0
        for row in self.prefill:
            new = slice(n, n + row.count)
            parts.append(_prefill(query[:, new], key[:, new], value[:, new], row, self.cache, layer, rules))
            n += row.count
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class PagedContexts:
    """A `PagedAttention` of a base's devices, each layer's by what is on its own."""

    of: Mapping[torch.device, PagedContext]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        return self.of[query.device].attend(layer, query, key, value, rules)


def paged_context(batch: StepBatch, cache: PagedCache, device: torch.device) -> PagedContext:
    """What attention needs of `batch`, on the device."""

    def on_device(array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    decoding, prefill = batch.spans[: batch.decoding], batch.spans[batch.decoding :]
    blocks = on_device(batch.blocks.astype(np.int64))
    groups = []
    first = 0
    for run in [1] * len(decoding) if batch.alone else _runs(decoding):
        within = slice(first, first + run)
        lengths = on_device(np.array([span.start + 1 for span in decoding[within]]))[:, None]
        width = blocks_for(max(span.start for span in decoding[within]) + 1)
        ahead = torch.arange(width * BLOCK_TOKENS, device=device)
        groups.append(DecodeGroup(first, first + run, blocks[within, :width], lengths - 1 - ahead))
        first += run
    return PagedContext(
        cache=cache,
        blocks=on_device(batch.places),
        offsets=on_device(batch.positions % BLOCK_TOKENS),
        decode=tuple(groups),
        prefill=tuple(
            PrefillRow(row[: blocks_for(span.start + span.count)], span.start, span.count)
            for row, span in zip(blocks[batch.decoding :], prefill, strict=True)
        ),
    )


def _runs(spans: Sequence[Span]) -> list[int]:
    """Neighbours whose lengths are alike: gathered as far as the longest, they waste less than half."""
    return [len(list(run)) for _, run in groupby(spans, lambda span: blocks_for(span.start + 1).bit_length())]


def paged_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    paged: PagedAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(q k^T * scaling) v of each row over its own blocks; new keys and values are stored first.

    Args:
        query: [1, H, T, D]; key, value: [1, H_kv, T, D].
        sliding_window, softcap: see `Rules`.
        s_aux: refused: a sink that takes some of each row's attention.
        kwargs: of a paged step, refused but for `NO_EFFECT`.

    Returns:
        [1, T, H, D], None.

    Raises:
        UnsupportedModel: the family's attention has more to it than is computed here.
    """
    if s_aux is not None:
        raise UnsupportedModel("attention with sinks is not computed here; choose a base without")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if paged is None and softcap is not None:
        rules = Rules(scale, softcap=softcap)  # the window is in the mask
        return _attended(query, key, value, attention_mask, rules).transpose(1, 2), None
    if paged is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        kwargs.pop("dropout", None)
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    unknown = {name for name, given in kwargs.items() if given is not None} - NO_EFFECT
    if unknown:
        raise UnsupportedModel(
            f"attention with {', '.join(sorted(unknown))} is not computed here; choose a base without"
        )
    out = paged.attend(module.layer_idx, query[0], key[0], value[0], Rules(scale, sliding_window, softcap))
    return out[None], None


def _decode(query: Tensor, group: DecodeGroup, cache: PagedCache, layer: int, rules: Rules) -> Tensor:
    """Over as many blocks as the longest row of the group has: query [H, g, D] -> [g, H, D]."""
    ahead = (group.distance < 0)[:, None, :, None]

    # A masked position still multiplies what it holds by 0, and 0 * NaN is NaN.
    keys, values = (held.masked_fill(ahead, 0.0) for held in cache.read(layer, group.blocks))
    heads, count, dim = query.shape
    # Query heads of one KV head go as its queries.
    grouped = query.transpose(0, 1).reshape(count, keys.shape[1], -1, dim)
    return _attended(grouped, keys, values, group.mask(rules.window), rules).reshape(count, heads, dim)


def _prefill(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row: PrefillRow,
    cache: PagedCache,
    layer: int,
    rules: Rules,
) -> Tensor:
    """A run of one row's tokens: query [H, t, D], key and value [H_kv, t, D] -> [t, H, D]."""
    if row.start > 0:
        first = row.first_block(rules.window)
        blocks, seen = row.blocks[first:], row.start + row.count - first * BLOCK_TOKENS
        key, value = (held[:, :seen] for held in cache.read(layer, blocks))
    out = _attended(query[None], key[None], value[None], row.mask(rules.window), rules)
    return out[0].transpose(0, 1)


def _attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rules: Rules) -> Tensor:
    """[B, H, t, D] of query [B, H, t, D] over key and value [B, H_kv, n, D].

    Args:
        mask: bool, broadcastable to [B, H, t, n], true where to look; None for plain causality.
    """
    if rules.softcap is None:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and query.shape[-2] > 1,
            scale=rules.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    shared = query.shape[1] // key.shape[1]
    key, value = (held.repeat_interleave(shared, dim=1) for held in (key, value))
    scores = query.float() @ key.float().transpose(-1, -2) * rules.scale
    scores = torch.tanh(scores / rules.softcap) * rules.softcap
    if mask is None:
        new, seen = scores.shape[-2:]
        mask = torch.ones(new, seen, dtype=torch.bool, device=scores.device).tril(seen - new)
    return scores.masked_fill(~mask, float("-inf")).softmax(-1).to(value.dtype) @ value


def register() -> None:
    """Make the implementation known to transformers."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, paged_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
