"""What a launch of our own kernels moves and waits for, on a GPU of so many multiprocessors. A model.

Bytes to and from memory are counted once for all programs: what several read comes from the cache but for
the first time. `busiest` counts what each program reads. `trips` follow the kernels' loops as they are
compiled: those of `delta_down` have two tiles in flight, those of `delta_up` and `attend` one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from benchmarks.instruments.gpu_time import Gpu, Launch
from brainstacks.config import StackConfig
from brainstacks.gpu_kernels.attention_kernel import Tiling
from brainstacks.gpu_kernels.delta_kernels import COLUMNS, RECORD
from brainstacks.gpu_kernels.deltas import DECODE
from brainstacks.gpu_kernels.launch import PER_PROCESSOR
from brainstacks.gpu_kernels.work_list import FIELDS, decode_capacity, write_decode_items
from brainstacks.layers.bank import SlotWeights
from brainstacks.layers.delta_plan import DeltaPlan, pieces
from brainstacks.layers.projections import INPUT_GROUPS

SHARED = {"delta_down": 65536, "delta_up": 43384, "attend": 42112}
"""Bytes of shared memory of a program: the table of `kernel_resources`."""
BFLOAT16, FLOAT32 = 2, 4


def _busiest(name: str, items: int, nbytes: float, trips: float, gpu: Gpu) -> dict[str, float]:
    """Of a persistent kernel that works through so many equal items; nbytes and trips are of one."""
    at_once = gpu.processors * min(PER_PROCESSOR, gpu.shared // SHARED[name])
    return {"busiest": ceil(items / gpu.processors) * nbytes, "trips": ceil(items / at_once) * trips}


def _name(kernel: str, d_in: int, outputs: Sequence[int]) -> str:
    return f"{kernel} {d_in} -> {' '.join(map(str, outputs))}"


@dataclass(frozen=True)
class DeltaCosts:
    """Launches of deltas by a step's plan. Stacks are of one shape, with `COLUMNS` columns in one round.

    Args:
        rows: of the step.
    """

    config: StackConfig
    plan: DeltaPlan
    weights: SlotWeights
    rows: int
    gpu: Gpu

    def down(self, d_in: int, outputs: Sequence[int]) -> Launch:
        """Gates and A. Every piece of a pair's inputs computes its gates again."""
        pairs, experts, projections = self.plan.pairs, self.config.experts, len(outputs)
        cut = self._cut(d_in, projections)
        line = d_in * BFLOAT16
        tokens = (self.plan.pair_weight != 0).sum(1)
        columns = COLUMNS * self._chosen(tokens)
        one = line * (experts + tokens.mean() * (1 + 1 / cut) + columns.mean() / cut)
        gates, factors = (ceil(d_in / size) for size in (DECODE.gate_inputs, DECODE.inputs))
        trips = 2 + max(1.0, gates / 2) + max(1.0, ceil(factors / cut) / 2)
        stacks = len(self.weights.residents)
        moved = projections * line * (stacks * experts + self._columns()) + self.rows * line
        moved += self._hidden(projections, cut) + self._tables()
        return Launch(
            "down", _name("down", d_in, outputs), moved,
            2.0 * pairs * DECODE.tokens * projections * d_in * (experts + COLUMNS),
            **_busiest("delta_down", pairs * projections * cut, one, trips, self.gpu),
        )  # fmt: skip

    def up(self, d_in: int, outputs: Sequence[int]) -> Launch:
        """B. Every tile of outputs reads all pieces of its projection's hidden, of rows that use the pair."""
        pairs, blocks, wide = self.plan.pairs, self.plan.blocks, len(outputs)
        cut = self._cut(d_in, wide)
        users = (self.plan.pair_weight != 0).sum(1)
        hidden = COLUMNS * cut * users.mean() * FLOAT32
        of_pair = hidden + COLUMNS * self._chosen(users).mean() * DECODE.outputs * BFLOAT16
        deep = pairs / blocks
        items = blocks * sum(ceil(d_out / DECODE.outputs) for d_out in outputs)
        moved = (self._columns() + 2 * self.rows) * sum(outputs) * BFLOAT16  # the outputs come and go
        moved += self._hidden(wide, cut) + self._tables()
        return Launch(
            "up", _name("up", d_in, outputs), moved,
            2.0 * pairs * DECODE.tokens * COLUMNS * sum(outputs),
            **_busiest("delta_up", items, deep * of_pair, 3 + deep, self.gpu),
        )  # fmt: skip

    def _cut(self, d_in: int, projections: int) -> int:
        """Pieces of the inputs of a group of so many projections."""
        shared = PER_PROCESSOR * self.gpu.processors // self.plan.pairs
        of_groups = pieces([d_in] * len(INPUT_GROUPS), DECODE, shared, self.plan.blocks)
        return dict(zip(map(len, INPUT_GROUPS), of_groups, strict=True))[projections]

    def _chosen(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Share of experts that some of so many tokens keep; these are taken to choose independently."""
        dropped = 1.0 - self.config.top_k / self.config.experts
        return 1.0 - np.power(dropped, tokens, dtype=np.float64)

    def _columns(self) -> float:
        """Of all stacks, those of experts that some row's gate keeps: read from memory once."""
        users = (self.weights.weights != 0).sum(0)
        return float(COLUMNS * self._chosen(users).sum())

    def _hidden(self, projections: int, cut: int) -> float:
        return self.plan.pairs * projections * cut * DECODE.tokens * COLUMNS * FLOAT32

    def _tables(self) -> float:
        return self.plan.pairs * (RECORD * 8 + DECODE.tokens * FLOAT32)


@dataclass(frozen=True)
class AttentionCosts:
    """Launches of attention of rows that look back at `seen` tokens each, in bfloat16."""

    rows: int
    heads: int
    kv_heads: int
    head_dim: int
    seen: int
    tile: Tiling
    gpu: Gpu

    def store(self) -> Launch:
        """Read and written, keys and values."""
        nbytes = 4 * self.rows * self.kv_heads * self.head_dim * BFLOAT16
        return Launch("attention", "store_kv", nbytes, trips=1)

    def attend(self) -> Launch:
        keys = self._items()
        cached = 2 * self.head_dim * BFLOAT16  # of a key and its value
        nbytes = self.rows * self.seen * self.kv_heads * cached + self._queries() + self._partials()
        trips = 1.5 + ceil(int(keys.max()) / self.tile.keys)
        return Launch(
            "attention", "attend", nbytes, 4.0 * self.rows * self.seen * self.heads * self.head_dim,
            **_busiest("attend", len(keys) * self.kv_heads, float(keys.mean()) * cached, trips, self.gpu),
        )  # fmt: skip

    def combine(self) -> Launch:
        return Launch("attention", "combine", self._partials() + self._queries(), trips=1)

    def _items(self) -> NDArray[np.int64]:
        """Keys of each, as the step's work list cuts the rows."""
        items = np.zeros((decode_capacity(self.rows, self.seen), FIELDS), np.int32)
        ends, tables = np.zeros(self.rows + 1, np.int32), np.zeros(self.rows, np.int64)
        write_decode_items(tables, np.full(self.rows, self.seen - 1), items, ends)
        items = items[: ends[-1]]
        return (items[:, 5] - items[:, 4]).astype(np.int64)

    def _queries(self) -> int:
        return self.rows * self.heads * self.head_dim * BFLOAT16

    def _partials(self) -> int:
        return len(self._items()) * self.heads * (self.head_dim + 1) * FLOAT32
