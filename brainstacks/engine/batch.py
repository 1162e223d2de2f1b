"""The tensors of one step, from the scheduler's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brainstacks.engine.attention import SlotContext
from brainstacks.engine.kv_cache import SlotCache
from brainstacks.engine.scheduler import Row
from brainstacks.layers.bank import Key


@dataclass(frozen=True)
class StepBatch:
    """All tokens of a step in one packed row.

    Attributes:
        rows: decode rows in slot order, then prefill rows; the order of the packed tokens.
        input_ids, position_ids: [1, T] int64.
        weights: the composition of each token.
        slots: what attention needs.
        logit_indices: [L] int64, packed positions whose logits are wanted.
        logit_counts: how many of them belong to each row.
    """

    rows: tuple[Row, ...]
    input_ids: Tensor
    position_ids: Tensor
    weights: Sequence[Mapping[Key, float]]
    slots: SlotContext
    logit_indices: Tensor
    logit_counts: tuple[int, ...]


def build(rows: Sequence[Row], cache: SlotCache, device: torch.device) -> StepBatch:
    """Pack `rows`; the cache is grown to hold them."""
    decode = sorted((r for r in rows if _decodes(r)), key=_slot)
    prefill = [r for r in rows if not _decodes(r)]
    ordered = (*decode, *prefill)
    cache.reserve(max(map(_slot, ordered)) + 1, max(r.start + r.count for r in ordered))
    ids: list[int] = []
    positions: list[int] = []
    weights: list[Mapping[Key, float]] = []
    wanted: list[int] = []
    counts: list[int] = []
    for row in ordered:
        sequence, end = row.sequence, row.start + row.count
        ids += sequence.tokens(row.start, row.count)
        positions += range(row.start, end)
        weights += [sequence.weights] * row.count
        prompt = len(sequence.request.prompt_ids)
        if sequence.request.sampling.prompt_logprobs is not None and row.start < prompt:
            count = row.count
        else:
            count = 1 if end == sequence.length else 0
        wanted += range(len(ids) - count, len(ids))
        counts.append(count)
    slots = [_slot(r) for r in decode]
    return StepBatch(
        rows=ordered,
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        weights=weights,
        slots=SlotContext(
            cache=cache,
            decode=len(decode),
            decode_slots=torch.tensor(slots, dtype=torch.long, device=device),
            decode_positions=torch.tensor([r.start for r in decode], dtype=torch.long, device=device),
            dense=slots == list(range(len(slots))),
            longest=max((r.start + 1 for r in decode), default=0),
            prefill=tuple((_slot(r), r.start, r.count) for r in prefill),
        ),
        logit_indices=torch.tensor(wanted, dtype=torch.long, device=device),
        logit_counts=tuple(counts),
    )


def _decodes(row: Row) -> bool:
    return row.count == 1 and row.start > 0


def _slot(row: Row) -> int:
    slot = row.sequence.slot
    if slot is None:
        raise RuntimeError("a scheduled sequence has no slot")
    return slot
