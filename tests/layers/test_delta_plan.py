"""The plan of a step's deltas covers each token's stacks once, in few pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from brainstacks.gpu_kernels.delta_kernels import COLUMNS, DOWN, FIRST, RANK, STRIDE, UP
from brainstacks.gpu_kernels.deltas import DECODE, PREFILL
from brainstacks.layers.delta_plan import GATES, DeltaPlan, DeltaPlanner, pieces
from tests.tiny import bank_of, random_stack, stack_config

DIMS = {"q_proj": (8, 8), "down_proj": (12, 8)}
PROJECTIONS = tuple(DIMS)


def bank(**shapes: tuple[int, int, int]) -> Any:
    """Of stacks by (rank, experts, rounds)."""
    return bank_of({
        name: random_stack(
            DIMS, 0, rounds, stack_config(rank=rank, experts=experts, top_k=1, projections=PROJECTIONS)
        )
        for name, (rank, experts, rounds) in shapes.items()
    })  # fmt: skip


def planned(bank: Any, weights: Sequence[Mapping[Any, float]], block: int = 16) -> DeltaPlan:
    return DeltaPlanner().plan(bank.slot_weights(weights), block)


def test_every_token_meets_each_of_its_rounds_with_its_weight() -> None:
    stacks = bank(a=(4, 2, 1), b=(2, 3, 2))
    weights = [{"a": 0.5}, {}, {"b": -1.0}, {"a": 2.0, "b": 0.25}, {"a": 0.0}]
    plan = planned(stacks, weights, block=2)
    met: dict[int, list[tuple[int, float]]] = {}
    for pair, block in enumerate(plan.pair_block):
        for token, weight in zip(plan.tokens[block], plan.pair_weight[pair], strict=True):
            if weight:
                met.setdefault(int(token), []).append((int(plan.records[pair, RANK]), float(weight)))
    scale = {"a": stacks.resident("a").stack.scaling, "b": stacks.resident("b").stack.scaling}
    expected = {
        0: [(4, 0.5 * scale["a"])],
        2: [(2, -scale["b"])] * 2,
        3: [(4, 2 * scale["a"]), (2, 0.25 * scale["b"]), (2, 0.25 * scale["b"])],
    }
    assert met.keys() == expected.keys()
    for token, pairs in expected.items():
        assert [rank for rank, _ in met[token]] == [rank for rank, _ in pairs]
        assert [weight for _, weight in met[token]] == pytest.approx([weight for _, weight in pairs])


def test_the_pairs_of_a_block_lie_side_by_side() -> None:
    stacks = bank(a=(4, 2, 1), b=(2, 3, 1))
    plan = planned(stacks, [{"a": 1.0}] * 20 + [{"b": 1.0}] * 20)
    assert plan.blocks == 3
    for block in range(plan.blocks):
        first, last = plan.block_first[block : block + 2]
        assert (plan.pair_block[first:last] == block).all()
    assert plan.block_first[-1] == plan.pairs


def test_rows_of_one_composition_share_blocks_so_that_pairs_are_few() -> None:
    stacks = bank(**dict.fromkeys("abcd", (4, 2, 1)))
    weights = [{"abcd"[at % 4]: 1.0} for at in range(64)]  # interleaved as they arrived
    assert planned(stacks, weights).pairs == 4


def test_a_stack_of_many_columns_takes_several_pairs() -> None:
    plan = planned(bank(wide=(80, 2, 2)), [{"wide": 1.0}])
    assert plan.records[:, FIRST].tolist() == [0, COLUMNS, 2 * COLUMNS] * 2


def test_nothing_to_add_is_no_pair() -> None:
    plan = planned(bank(a=(4, 2, 1)), [{}, {"a": 0.0}])
    assert (plan.pairs, plan.blocks, plan.block_first.tolist()) == (0, 0, [0])


def test_gates_grow_with_the_most_experts() -> None:
    assert planned(bank(a=(1, 3, 1)), [{"a": 1.0}]).gates == GATES
    assert planned(bank(a=(1, 33, 1)), [{"a": 1.0}]).gates == 64


def test_inputs_are_cut_until_every_program_has_something_to_do() -> None:
    widths = (4096, 4096, 4096, 14336)
    assert pieces(widths, DECODE, shared=6) == [2, 6, 3, 6]
    assert pieces(widths, DECODE, shared=0) == [1, 1, 1, 1]
    assert pieces(widths, DECODE, shared=None) == [DECODE.splits] * 4
    assert pieces(widths, DECODE, shared=100, blocks=4) == [2] * 4
    assert pieces(widths, DECODE, shared=100, blocks=20) == [1] * 4
    assert pieces((64, 64, 64, 300), DECODE, shared=100) == [1, 1, 1, 2]
    assert pieces(widths, PREFILL, shared=100) == [1, 1, 1, 1]


def test_records_are_made_once_for_a_stack() -> None:
    stacks, planner = bank(a=(4, 2, 1)), DeltaPlanner()
    stack = stacks.resident("a").stack
    assert planner.records(stack) is planner.records(stack)


def test_factors_begin_where_a_kernel_may_read_sixteen_bytes_at_once() -> None:
    odd = {"q_proj": (7, 5), "k_proj": (7, 3), "v_proj": (7, 3), "down_proj": (9, 7)}
    config = stack_config(rank=3, experts=1, top_k=1, projections=tuple(odd))
    halves = bank_of({"a": random_stack(odd, 0, rounds=3, config=config)}, torch.bfloat16)
    records = DeltaPlanner().records(halves.resident("a").stack)
    assert records[:, DOWN : DOWN + 4].any()
    assert not (records[:, DOWN : UP + 7] % 16).any()
    assert not (records[:, STRIDE] % 16).any()
