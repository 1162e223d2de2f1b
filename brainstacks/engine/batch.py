"""The tensors of one step, from the scheduler's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brainstacks.engine.attention import DecodeRows, PagedContext, PrefillRow
from brainstacks.engine.block_pool import BLOCK_TOKENS, SCRATCH, blocks_for
from brainstacks.engine.kv_cache import PagedCache
from brainstacks.engine.scheduler import Row


@dataclass(frozen=True)
class StepBatch:
    """All tokens of a step in one packed row.

    Attributes:
        rows: decode rows, the shortest first, then prefill rows; the order of the packed tokens.
        input_ids, position_ids: [1, T] int64.
        weights: the composition of each token.
        paged: what attention needs.
        logit_indices: [L] int64, packed positions whose logits are wanted; those of padding rows come last.
        logit_counts: how many of them belong to each row.
    """

    rows: tuple[Row, ...]
    input_ids: Tensor
    position_ids: Tensor
    weights: Sequence[Mapping[Any, float]]
    paged: PagedContext
    logit_indices: Tensor
    logit_counts: tuple[int, ...]


def build(rows: Sequence[Row], cache: PagedCache, device: torch.device, decode_rows: int = 0) -> StepBatch:
    """Pack `rows`.

    Args:
        decode_rows: pad decode rows, where there is nothing else, to so many, and let each attend on its own,
            so that no row's result depends on how many others there are; 0 packs what is there.
    """
    decode = sorted((r for r in rows if _decodes(r)), key=_start)
    prefill = [r for r in rows if not _decodes(r)]
    ordered = (*decode, *prefill)
    ids: list[int] = []
    weights: list[Mapping[Any, float]] = []
    wanted: list[int] = []
    counts: list[int] = []
    for row in ordered:
        ids += row.sequence.tokens(row.start, row.count)
        weights += [row.sequence.weights] * row.count
        ends = row.start + row.count == row.sequence.length
        counts.append(row.count if row.sequence.scores_prompt else int(ends))
        wanted += range(len(ids) - counts[-1], len(ids))
    padding = max(0, decode_rows - len(decode)) if not prefill else 0
    ids += [0] * padding
    weights += [{}] * padding
    wanted += range(len(ids) - padding, len(ids))  # so that the head's shape is fixed too

    starts = [row.start for row in decode] + [0] * padding
    table = np.full((len(starts), blocks_for(max(starts, default=0) + 1)), SCRATCH, np.int32)
    for i, row in enumerate(decode):
        held = _blocks(row)
        table[i, : len(held)] = held
    spans = [_span(row) for row in prefill]
    positions = np.concatenate([np.array(starts, np.int64), *(span for span, _ in spans)])
    places = np.concatenate(
        [table[range(len(starts)), positions[: len(starts)] // BLOCK_TOKENS], *(place for _, place in spans)]
    )

    def on_device(array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return StepBatch(
        rows=ordered,
        input_ids=torch.tensor([ids], device=device),
        position_ids=on_device(positions)[None],
        weights=weights,
        paged=PagedContext(
            cache=cache,
            blocks=on_device(places.astype(np.int64)),
            offsets=on_device(positions % BLOCK_TOKENS),
            decode=DecodeRows(
                blocks=on_device(table),
                lengths=on_device(np.array(starts, np.int32) + 1),
                runs=(1,) * len(starts) if decode_rows else _runs(starts),
            )
            if starts
            else None,
            prefill=tuple(
                PrefillRow(on_device(_blocks(row).astype(np.int64)), row.start, row.count) for row in prefill
            ),
        ),
        logit_indices=torch.tensor(wanted, dtype=torch.long, device=device),
        logit_counts=tuple(counts),
    )


def _decodes(row: Row) -> bool:
    return row.count == 1 and row.start > 0


def _start(row: Row) -> int:
    return row.start


def _blocks(row: Row) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The blocks of the row's sequence, up to its last token."""
    return np.array(row.sequence.blocks[: blocks_for(row.start + row.count)], np.int32)


def _span(row: Row) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Positions of the row's tokens, and the block of each."""
    positions = np.arange(row.start, row.start + row.count)
    return positions, _blocks(row)[positions // BLOCK_TOKENS]


def _runs(starts: Sequence[int]) -> tuple[int, ...]:
    """Neighbours whose lengths are alike: gathered as far as the longest, they waste less than half."""
    return tuple(
        len(list(run)) for _, run in groupby(starts, lambda start: blocks_for(start + 1).bit_length())
    )
