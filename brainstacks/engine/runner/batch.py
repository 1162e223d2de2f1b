"""The tokens of a step in one packed row, as the host knows them: plain arrays that any backend reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from brainstacks.engine.block_manager import BLOCK_TOKENS, SCRATCH, blocks_for
from brainstacks.engine.scheduler import Row

Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Span:
    """Neighbouring packed tokens of one completion.

    Attributes:
        first: of them, in the batch.
        start: position of the first in its completion.
    """

    first: int
    count: int
    start: int


@dataclass(frozen=True)
class StepBatch:
    """All tokens of a step.

    Attributes:
        rows: decode rows, the shortest first, then prefill rows; the order of the packed tokens.
        spans: the tokens of each row, and of each padding row, which follow the decode rows.
        decoding: how many spans are decode rows or padding: one token each, in front.
        ids, positions: [T] int64.
        blocks: [spans, m] int32, the KV blocks of each completion in order; beyond its own, SCRATCH.
        places: [T] int64, the KV block that each token's key and value go to.
        weights: the composition of each token.
        wanted: [L] int64, packed positions whose logits are wanted; those of padding rows come last.
        wanted_counts: how many of them belong to each row.
        alone: no decode row may share a computation whose shape others decide.
    """

    rows: tuple[Row, ...]
    spans: tuple[Span, ...]
    decoding: int
    ids: Integers
    positions: Integers
    blocks: np.ndarray[Any, np.dtype[np.int32]]
    places: Integers
    weights: Sequence[Mapping[Any, float]]
    wanted: Integers
    wanted_counts: tuple[int, ...]
    alone: bool = False

    def read_ids(self) -> None:
        """Fill in `ids`; those of padding are 0."""
        known = [token for row in self.rows for token in row.completion.tokens(row.start, row.count)]
        self.ids[: len(known)] = known

    def split(self) -> tuple[StepBatch, ...]:
        """Its decode rows and its other rows, as batches of their own; itself where it has one kind alone."""
        n, tokens = self.decoding, len(self.ids)
        if n in (0, len(self.spans)):
            return (self,)
        decoded = int(np.searchsorted(self.wanted, n))  # a decode row is one token
        return (
            self._part(slice(0, n), slice(0, n), slice(0, decoded)),
            self._part(slice(n, len(self.spans)), slice(n, tokens), slice(decoded, len(self.wanted))),
        )

    def _part(self, spans: slice, tokens: slice, wanted: slice) -> StepBatch:
        """Of neighbouring spans and their tokens."""
        return replace(
            self,
            rows=self.rows[spans],
            spans=tuple(replace(span, first=span.first - tokens.start) for span in self.spans[spans]),
            decoding=self.decoding if spans.start == 0 else 0,
            ids=self.ids[tokens],
            positions=self.positions[tokens],
            blocks=self.blocks[spans],
            places=self.places[tokens],
            weights=self.weights[tokens],
            wanted=self.wanted[wanted] - tokens.start,
            wanted_counts=self.wanted_counts[spans],
        )


def build(rows: Sequence[Row], decode_rows: int = 0) -> StepBatch:
    """Pack `rows`, as `lay_out` does, with their ids."""
    batch = lay_out(rows, decode_rows)
    batch.read_ids()
    return batch


def lay_out(rows: Sequence[Row], decode_rows: int = 0) -> StepBatch:
    """Pack `rows`, whose ids may still be in the air: `read_ids` is to be called when they are there.

    Args:
        decode_rows: pad decode rows, where there is nothing else, to so many, and let each attend on its own,
            so that no row's result depends on how many others there are; 0 packs what is there.
    """
    decode = sorted((row for row in rows if _decodes(row)), key=_start)
    prefill = [row for row in rows if not _decodes(row)]
    ordered = (*decode, *prefill)
    padding = max(0, decode_rows - len(decode)) if not prefill else 0
    spans: list[Span] = []
    tokens = 0
    weights: list[Mapping[Any, float]] = []
    wanted: list[int] = []
    counts: list[int] = []
    for row in ordered:
        spans.append(Span(tokens, row.count, row.start))
        tokens += row.count
        before = min(max(row.completion.response - row.start, 0), row.count)
        weights += [row.completion.prompt_weights] * before
        weights += [row.completion.weights] * (row.count - before)
        ends = row.start + row.count >= row.completion.length  # more than that, of one in the air
        counts.append(row.count if row.completion.scores_prompt else int(ends))
        wanted += range(tokens - counts[-1], tokens)
    for _ in range(padding):
        wanted.append(tokens)  # so that the head's shape is fixed too
        spans.append(Span(tokens, 1, 0))
        tokens += 1
        weights.append({})

    needed = [blocks_for(span.start + span.count) for span in spans]
    table = np.full((len(spans), max(needed)), SCRATCH, np.int32)
    for held, row, count in zip(table, ordered, needed, strict=False):
        held[:count] = row.completion.blocks[:count]
    positions = np.concatenate([np.arange(span.start, span.start + span.count) for span in spans])
    completion = np.repeat(np.arange(len(spans)), [span.count for span in spans])
    return StepBatch(
        rows=ordered,
        spans=tuple(spans),
        decoding=len(decode) + padding,
        ids=np.zeros(tokens, np.int64),
        positions=positions,
        blocks=table,
        places=table[completion, positions // BLOCK_TOKENS].astype(np.int64),
        weights=weights,
        wanted=np.array(wanted, np.int64),
        wanted_counts=tuple(counts),
        alone=decode_rows > 0,
    )


def _decodes(row: Row) -> bool:
    return row.count == 1 and row.start > 0


def _start(row: Row) -> int:
    return row.start
