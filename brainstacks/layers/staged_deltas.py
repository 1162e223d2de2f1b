"""The deltas of a step from tensors that each step fills in again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from brainstacks.config import PROJECTIONS
from brainstacks.gpu_kernels.delta_kernels import COLUMNS
from brainstacks.gpu_kernels.deltas import delta_down, delta_up
from brainstacks.layers.projections import INPUT_GROUPS

FIRST = tuple(PROJECTIONS.index(names[0]) for names in INPUT_GROUPS)
"""Of each group, its first projection."""


class Beside(Protocol):
    """Where the first launch of a group runs, while the base computes its projections."""

    def begin(self) -> AbstractContextManager[object]:
        """Within the block, work is enqueued there, after all that was enqueued so far."""

    def join(self) -> None:
        """What is enqueued from now on comes after it."""


class InLine:
    """Nowhere else."""

    def begin(self) -> AbstractContextManager[object]:
        return nullcontext()

    def join(self) -> None:
        pass


class SideStream:
    """A CUDA stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def begin(self) -> AbstractContextManager[object]:
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        return torch.cuda.stream(self._stream)

    def join(self) -> None:
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)


@dataclass(frozen=True)
class StagedDeltas:
    """`GroupDeltas` of a step; see `gpu_kernels.deltas`.

    Attributes:
        records, tokens, block_first, pair_block, pair_weight: of a `DeltaPlan`, with room for more.
        counts: int32 [2 + groups], its pairs and blocks, and the pieces of each group's inputs.
        hidden: float32 [n, tokens of a block, COLUMNS], room for each piece of each projection of each pair.
        chosen: int32 [n, COLUMNS], room for each projection of each pair.
        gates: experts that the gates' products are made for.
    """

    records: Tensor
    tokens: Tensor
    block_first: Tensor
    pair_block: Tensor
    pair_weight: Tensor
    counts: Tensor
    hidden: Tensor
    chosen: Tensor
    gates: int
    beside: Beside

    def before(self, layer: int, group: int, x: Tensor) -> None:
        with self.beside.begin():
            delta_down(
                x.reshape(-1, x.shape[-1]),
                self.records,
                self.tokens,
                self.pair_block,
                self.pair_weight,
                self.counts,
                self.hidden,
                self.chosen,
                layer,
                group,
                FIRST[group],
                len(INPUT_GROUPS[group]),
                self.gates,
            )

    def add(self, layer: int, group: int, outputs: Sequence[Tensor]) -> None:
        self.beside.join()
        flat = [output.view(-1, output.shape[-1]) for output in outputs]
        delta_up(
            *flat,
            *[None] * (3 - len(flat)),
            self.records,
            self.tokens,
            self.block_first,
            self.pair_weight,
            self.counts,
            self.hidden,
            self.chosen,
            layer,
            group,
            FIRST[group],
        )


def room(n: int, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`hidden` and `chosen` for n of their pieces, projections and pairs."""
    hidden = torch.zeros(n, tokens, COLUMNS, device=device)
    return hidden, torch.zeros(n, COLUMNS, dtype=torch.int32, device=device)
