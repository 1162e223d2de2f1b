"""What a step of the cuda backend does on a GPU, seen on one that computes nothing: it waits for nothing, and
launches what it is said to, again and again over the same buffers, whatever the rows are composed of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.instruments.fake_gpu import FakeGpu, Launches
from brainstacks.config import EngineConfig
from brainstacks.engine.block_manager import blocks_for
from brainstacks.engine.runner.batch import Span, StepBatch
from brainstacks.engine.runner.cuda_backend import CudaBackend
from brainstacks.engine.runner.kv_cache import PagedCache
from tests.tiny import FAMILIES, bank_of, random_stack, stack_config, tiny_config

pytestmark = pytest.mark.static_cuda

LAYERS = 2
DELTAS_PER_GROUP, DELTAS_PER_LAYER = 2, 8
"""Launches; the bound that was asked for is 12 a layer."""


class Stepping:
    """A cuda backend on a GPU that computes nothing, with stacks of several shapes."""

    def __init__(self, family: str) -> None:
        self.gpu = FakeGpu()
        self.base = self.gpu.base(tiny_config(family), torch.float32)
        shapes = {"one": (2, 3, 2), "lora": (5, 1, 1), "wide": (40, 4, 2)}
        # On the host: nothing but their addresses is asked for.
        self.bank = bank_of({
            name: random_stack(self.base.identity.dims, 0, config=stack_config(rank=r, experts=n, top_k=k))
            for name, (r, n, k) in shapes.items()
        })  # fmt: skip
        with self.gpu.on():
            cache = PagedCache(self.base.parts, 40, 2, 8, torch.float32)
            self.backend = CudaBackend(
                self.base, cache, "a test", EngineConfig(backend="cuda", max_batch_size=8)
            )
        for key in self.bank.keys:
            self.backend.prepare(self.bank.resident(key).stack)

    def step(self, *rows: tuple[int, int, Mapping[str, float]]) -> Launches:
        """Of rows (start, count, weights)."""
        seen = Launches()
        with self.gpu.on(), seen:
            self.backend.run(packed(rows), self.bank)
        return seen


def packed(rows: Sequence[tuple[int, int, Mapping[str, float]]]) -> StepBatch:
    """Decode rows come first."""
    spans, first = [], 0
    for start, count, _ in rows:
        spans.append(Span(first, count, start))
        first += count
    widest = max(blocks_for(start + count) for start, count, _ in rows)
    positions = np.concatenate([np.arange(start, start + count) for start, count, _ in rows])
    return StepBatch(
        rows=(),
        spans=tuple(spans),
        decoding=sum(count == 1 and start > 0 for start, count, _ in rows),
        ids=np.zeros(first, np.int64),
        positions=positions,
        blocks=np.ones((len(rows), widest), np.int32),
        places=np.ones(first, np.int64),
        weights=[weights for _, count, weights in rows for _ in range(count)],
        wanted=np.cumsum([count for _, count, _ in rows]) - 1,
        wanted_counts=(1,) * len(rows),
    )


Rows = tuple[tuple[int, int, dict[str, float]], ...]

MIXED: Rows = ((40, 1, {"one": 1.0, "wide": 0.5}), (7, 1, {"lora": -1.0}), (300, 1, {}))
OTHERS: Rows = (
    (3, 1, {"lora": 0.1}),
    (511, 1, {"one": 1.0, "lora": 1.0, "wide": 2.0}),
    (90, 1, {"wide": 1.0}),
)
PROMPTS: Rows = ((0, 20, {"one": 1.0}), (33, 9, {"wide": 0.5, "lora": 1.0}))


@pytest.fixture(scope="module", params=[*FAMILIES, "gemma2"])
def stepping(request: pytest.FixtureRequest) -> Stepping:
    return Stepping(request.param)


@pytest.mark.parametrize("rows", [MIXED, PROMPTS, (*MIXED, *PROMPTS)], ids=["decode", "prefill", "both"])
def test_a_step_waits_for_nothing_and_mixes_no_devices(stepping: Stepping, rows: Any) -> None:
    assert stepping.step(*rows).names  # what would wait raises


def test_deltas_are_two_launches_a_group_and_attention_three_a_layer(stepping: Stepping) -> None:
    names = Counter(stepping.step(*MIXED).names)
    assert names["delta_down"] + names["delta_up"] == DELTAS_PER_LAYER * LAYERS
    assert names["delta_down"] == names["delta_up"] == DELTAS_PER_LAYER // DELTAS_PER_GROUP * LAYERS
    assert [names[name] for name in ("store_kv", "attend", "combine")] == [LAYERS] * 3


def test_deltas_are_all_that_a_composition_adds_to_the_base(stepping: Stepping) -> None:
    base_only: Rows = tuple((start, count, {}) for start, count, _ in MIXED)
    stepping.step(*base_only)  # makes the tensors of its program
    composed, alone = Counter(stepping.step(*MIXED).names), Counter(stepping.step(*base_only).names)
    assert composed - alone == Counter(delta_down=4 * LAYERS, delta_up=4 * LAYERS)
    assert not alone - composed


def test_prefill_attends_in_two_launches_a_layer(stepping: Stepping) -> None:
    names = Counter(stepping.step(*PROMPTS).names)
    assert [names[name] for name in ("store_kv", "attend", "combine")] == [LAYERS, LAYERS, 0]


def test_one_copy_takes_a_step_to_the_device(stepping: Stepping) -> None:
    assert Counter(stepping.step(*MIXED).names)["copy_"] == 1


def test_other_compositions_lengths_and_slots_are_the_same_operations_on_the_same_buffers(
    stepping: Stepping,
) -> None:
    stepping.step(*MIXED)
    first, second = stepping.step(*MIXED), stepping.step(*OTHERS)
    # The copy to the device may be longer; what a graph records is all after it.
    assert first.names == second.names
    assert [call for call in first.calls if call[0] != "copy_"] == [
        call for call in second.calls if call[0] != "copy_"
    ]


def test_what_a_gpu_would_wait_for_is_noticed() -> None:
    gpu = FakeGpu()
    with gpu.on():
        there = torch.zeros(3, device=gpu.device)
        for waits in (
            there.sum().item,
            there.tolist,
            lambda: bool(there[0]),
            there.nonzero,
            lambda: there[there > 0],
        ):
            with pytest.raises(Exception, match=r"data.dependent|_local_scalar_dense|nonzero|index"):
                waits()
        with pytest.raises(RuntimeError, match="device"):
            there + torch.zeros(3)
