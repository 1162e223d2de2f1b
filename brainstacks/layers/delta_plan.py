"""What a step's tokens have to compute of which stacks, as the kernels of the `cuda` backend read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from brainstacks.config import PROJECTIONS
from brainstacks.gpu_kernels.delta_kernels import (
    COLUMNS,
    COUNTS,
    DOWN,
    EXPERTS,
    FIRST,
    PLACES,
    RANK,
    RECORD,
    STRIDE,
    TOP_K,
    UP,
)
from brainstacks.gpu_kernels.deltas import Tile
from brainstacks.layers.bank import SlotWeights
from brainstacks.layers.packed_stack import PackedStack
from brainstacks.layers.projections import INPUT_GROUPS

GATES = 16
"""Fewest experts that a gate's product is made for."""


@dataclass(frozen=True)
class DeltaPlan:
    """See `gpu_kernels.deltas` for blocks, pairs and records.

    Attributes:
        tokens: int32 [blocks, tokens of a block], those that have deltas, of one composition side by side;
            the last block is filled up with -1.
        block_first: int32 [blocks + 1], the first pair of each block.
        pair_block: int32 [pairs]; the pairs of a block in the order in which their deltas are added.
        pair_weight: float32 [pairs, tokens of a block], w * s.
        records: int64 [pairs, RECORD].
        gates: experts that the gates' products are made for.
    """

    tokens: NDArray[np.int32]
    block_first: NDArray[np.int32]
    pair_block: NDArray[np.int32]
    pair_weight: NDArray[np.float32]
    records: NDArray[np.int64]
    gates: int

    @property
    def pairs(self) -> int:
        return len(self.records)

    @property
    def blocks(self) -> int:
        return len(self.tokens)


class DeltaPlanner:
    """Plans steps; it knows the records of the stacks that it has seen."""

    def __init__(self) -> None:
        self._records: WeakKeyDictionary[PackedStack, NDArray[np.int64]] = WeakKeyDictionary()

    def plan(self, found: SlotWeights, block: int) -> DeltaPlan:
        """Cut the tokens of a step into blocks of so many."""
        stacks = [resident.stack for resident in found.residents]
        of_stacks = [self.records(stack) for stack in stacks]
        chunks = [len(rows) // stack.rounds for rows, stack in zip(of_stacks, stacks, strict=True)]
        per_round = np.repeat(chunks, [stack.rounds for stack in stacks]).astype(np.int64)
        records = np.concatenate([np.zeros((0, RECORD), np.int64), *of_stacks])
        weights = found.weights.repeat(per_round, axis=1)

        used = np.flatnonzero(weights.any(1))
        # Of one composition side by side: a block then has as few pairs as can be.
        order = used[np.lexsort(weights[used].T)] if len(used) else used
        blocks = -(-len(order) // block)
        tokens = np.full(blocks * block, -1, np.int32)
        tokens[: len(order)] = order
        by_token = np.zeros((blocks * block, len(records)), np.float32)
        by_token[: len(order)] = weights[order]
        by_block = by_token.reshape(blocks, block, len(records))
        pair_block, column = np.nonzero(by_block.any(1))
        return DeltaPlan(
            tokens=tokens.reshape(blocks, block),
            block_first=np.searchsorted(pair_block, np.arange(blocks + 1)).astype(np.int32),
            pair_block=pair_block.astype(np.int32),
            pair_weight=by_block[pair_block, :, column],
            records=records[column],
            gates=max([GATES, *(_whole(stack.shape.experts) for stack in stacks)]),
        )

    def records(self, stack: PackedStack) -> NDArray[np.int64]:
        """[rounds * pairs of a round, RECORD], round after round; made once."""
        if stack not in self._records:
            self._records[stack] = _records(stack)
        return self._records[stack]


def _records(stack: PackedStack) -> NDArray[np.int64]:
    shape = stack.shape
    starts = np.arange(0, shape.columns, COLUMNS)
    made = np.zeros((stack.rounds, len(starts), RECORD), np.int64)
    made[..., RANK], made[..., EXPERTS], made[..., TOP_K] = shape.rank, shape.experts, shape.top_k
    made[..., STRIDE] = stack.nbytes // shape.layers  # every layer has the same parts in the same order
    made[..., FIRST] = starts
    made[..., PLACES : PLACES + len(PROJECTIONS)] = -1
    for group in range(len(INPUT_GROUPS)):
        names = shape.projections(group)
        made[..., COUNTS + group] = len(names)
        if names:
            made[..., DOWN + group] = _addresses(stack.down[0, group])
        for place, name in enumerate(names):
            projection = PROJECTIONS.index(name)
            made[..., PLACES + projection] = place
            made[..., UP + projection] = _addresses(stack.up[0, name])
    return made.reshape(-1, RECORD)


def _addresses(part: object) -> NDArray[np.int64]:
    """Of the rounds of one part of a stack, [rounds, 1]."""
    return np.array([[part[n].data_ptr()] for n in range(len(part))])  # type: ignore


def pieces(widths: Sequence[int], tile: Tile, shared: int | None, blocks: int = 1) -> list[int]:
    """Into how many pieces the inputs of each group are cut, so that all programs have something to do.

    Args:
        widths: inputs of each group.
        shared: programs for each pair; None cuts as far as it goes.
        blocks: of the plan; the more, the fewer pieces: `delta_up` reads all of each block's again and again.
    """
    most = max(1, tile.splits // max(1, blocks))
    return [
        max(1, min(most, width // tile.inputs, most if shared is None else shared // len(names)))
        for width, names in zip(widths, INPUT_GROUPS, strict=True)
    ]


def _whole(experts: int) -> int:
    return 1 << (experts - 1).bit_length()
