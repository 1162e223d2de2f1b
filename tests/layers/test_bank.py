"""A bank's deltas equal the plain loops, for any mix of stacks, rows and weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from brainstacks.config import PROJECTIONS
from brainstacks.layers.hooks import LowRank
from brainstacks.layers.packed_stack import StackTensors
from tests.layers.composing import (
    DIMS,
    assert_same,
    config,
    fused,
    fused_tokens,
    inputs,
    outputs,
    plain,
    rounded,
)
from tests.tiny import bank_of, random_stack


@st.composite
def stacks_and_weights(draw: st.DrawFn) -> tuple[dict[str, StackTensors], list[dict[str, float]]]:
    stacks = {}
    for i in range(draw(st.integers(0, 6))):
        experts = draw(st.integers(1, 4))
        chosen = draw(st.sets(st.sampled_from(PROJECTIONS), min_size=1))
        shape = config(
            rank=draw(st.integers(1, 4)),
            experts=experts,
            top_k=draw(st.integers(1, experts)),
            alpha=draw(st.sampled_from([1.0, 4.0])),
            projections=tuple(p for p in PROJECTIONS if p in chosen),
        )
        # Half of them have one common shape, so that stacks of one shape occur.
        shape = draw(st.sampled_from([shape, config()]))
        stacks[f"d{i}"] = random_stack(DIMS, seed=i, rounds=draw(st.integers(1, 3)), config=shape)
    weight = st.sampled_from([0.0, 0.0, 1.0, 0.3, -1.5])
    rows = [{key: draw(weight) for key in stacks} for _ in range(draw(st.integers(1, 4)))]
    return stacks, rows


@pytest.mark.parametrize("apart", [False, True])
@given(case=stacks_and_weights())
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
def test_fused_equals_the_plain_loops_for_any_stacks_and_row_weights(
    case: tuple[dict[str, StackTensors], list[dict[str, float]]], apart: bool
) -> None:
    stacks, weights = case
    x = inputs(len(weights))
    assert_same(fused(bank_of(stacks), weights, x, apart=apart), plain(stacks, weights, x))


@pytest.mark.parametrize(
    "popularity",
    [
        pytest.param([0, 0, 0, 0, 0, 0], id="identical"),
        pytest.param([0, 1, 2, 3, 4, 5], id="distinct"),
        pytest.param([0, 0, 0, 1, 1, 2], id="zipf"),
        pytest.param([0, 0, 0, 0, 0, 5], id="skewed"),
    ],
)
def test_fused_equals_plain_for_every_pattern_of_popularity(popularity: list[int]) -> None:
    stacks = {f"d{i}": random_stack(DIMS, i, rounds=1 + i % 2, config=config()) for i in range(6)}
    weights = [{f"d{i}": 0.9} for i in popularity]
    x = inputs(len(weights))
    assert_same(fused(bank_of(stacks), weights, x), plain(stacks, weights, x))


def test_bfloat16_is_within_its_rounding_of_float32() -> None:
    # All experts kept: near a tie, rounding may choose another expert, which is no rounding error any more.
    stacks = {f"d{i}": random_stack(DIMS, i, rounds=2, config=config(top_k=3)) for i in range(3)}
    weights = [{"d0": 1.0, "d1": 0.5}, {"d2": -0.7}]
    x = inputs(2, dtype=torch.bfloat16)
    exact = plain(rounded(stacks), weights, [t.float() for t in x])
    found = {name: t.float() for name, t in fused(bank_of(stacks, torch.bfloat16), weights, x).items()}
    assert_same(found, exact, tolerance=0.03)


def test_zero_b_gives_an_exact_zero() -> None:
    stack = random_stack(DIMS, 0, rounds=2, config=config())
    silent = StackTensors(stack.config, 2, {n: t * (not n.endswith("B")) for n, t in stack.tensors.items()})
    for delta in fused(bank_of({"d": silent}), [{"d": 1.0}], inputs(1)).values():
        assert not delta.any()


def test_a_row_without_an_active_stack_gets_an_exact_zero_beside_rows_that_have_some() -> None:
    stacks = {f"d{i}": random_stack(DIMS, i, config=config()) for i in range(3)}
    out = fused(bank_of(stacks), [{"d0": 1.0}, {}, {"d2": 0.5, "d1": 0.0}], inputs(3))
    for name, delta in out.items():
        assert not delta[1].any(), name
        assert delta[0].any(), name
        assert delta[2].any(), name


def test_every_row_of_a_mixed_batch_equals_its_solo_run() -> None:
    stacks = {
        f"d{i}": random_stack(DIMS, i, rounds=1 + i % 3, config=config(rank=1 + i % 2)) for i in range(5)
    }
    bank = bank_of(stacks)
    weights = [{"d0": 1.0}, {"d1": 0.4, "d4": -1.0}, {}, {f"d{i}": 0.2 * i for i in range(5)}]
    x = inputs(4)
    batch = fused(bank, weights, x)
    for i, row in enumerate(weights):
        solo = fused(bank, [row], [t[i : i + 1] for t in x])
        assert_same({name: t[i : i + 1] for name, t in batch.items()}, solo)


def test_all_rounds_of_a_stack_lie_side_by_side_and_share_their_gemms() -> None:
    stack = random_stack(DIMS, 0, rounds=3, config=config())
    bank = bank_of({"d": stack})
    weights = [{"d": 0.5}]
    (correction,) = bank.bind(weights).corrections(0, 0, inputs(1)[0])["q_proj"]
    assert isinstance(correction, LowRank)
    for n, rows in enumerate(correction.up.split(config().experts * config().rank)):
        assert torch.equal(rows, stack.tensors[f"rounds.{n}.layers.0.q_proj.B"].T)
    assert correction.up.untyped_storage().nbytes() == bank.nbytes, "a view of the bank, not a copy"


def test_an_empty_bank_binds_to_nothing() -> None:
    assert bank_of({}).bind([{}, {}]).stacks == ()
    assert bank_of({}).nbytes == 0


def test_a_weight_for_a_stack_that_is_not_resident_is_refused_unless_it_is_zero() -> None:
    bank = bank_of({"d0": random_stack(DIMS, 0, config=config())})
    assert bank.bind([{"other": 0.0}]).stacks == ()
    with pytest.raises(KeyError, match="other"):
        bank.bind([{"other": 0.5}])


LONG = [32, 41]


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([1, 1, *LONG], id="decode and prefill"),
        pytest.param([*LONG, 1, 3], id="prefill first"),
        pytest.param([2, LONG[0], 1, 1, LONG[1], 2], id="in turn"),
        pytest.param([1] * 70, id="many single tokens"),
        pytest.param([LONG[1]], id="one prompt"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prompts_and_single_tokens_of_one_step_each_get_their_own_stacks(
    runs: list[int], dtype: torch.dtype
) -> None:
    stacks = {f"d{i}": random_stack(DIMS, i, rounds=1 + i % 2, config=config(top_k=3)) for i in range(4)}
    compositions: list[dict[str, float]] = [
        {f"d{i % 4}": 0.5 + 0.1 * i, f"d{(i + 1) % 4}": -0.5} if i % 3 != 2 else {} for i in range(len(runs))
    ]
    weights = [row for row, run in zip(compositions, runs, strict=True) for _ in range(run)]
    x = inputs(len(weights), 1, dtype=dtype)
    onto = outputs(x)
    found = fused_tokens(bank_of(stacks, dtype), weights, x, onto=onto)
    exact = plain(rounded(stacks) if dtype == torch.bfloat16 else stacks, weights, [t.float() for t in x])
    expected = {name: onto[name].float() + delta for name, delta in exact.items()}
    tolerance = {} if dtype == torch.float32 else {"tolerance": 0.05}
    assert_same({name: t.float() for name, t in found.items()}, expected, **tolerance)


def test_apart_a_stack_is_computed_for_the_rows_that_use_it_and_no_others() -> None:
    bank = bank_of({f"d{i}": random_stack(DIMS, i, config=config()) for i in range(4)})
    one, other = {"d0": 1.0}, {"d1": 1.0, "d2": 0.5}
    d0, *others = bank.bind([one, *[other] * 40, one], apart=True).stacks
    assert isinstance(d0.rows, Tensor)
    assert d0.rows.tolist() == [0, 41]
    assert [stack.rows for stack in others] == [slice(1, 41)] * 2, "a view of neighbours, no copy"
    assert [len(stack.weights) for stack in (d0, *others)] == [2, 40, 40]


def test_together_compositions_decide_no_shape() -> None:
    bank = bank_of({"a": random_stack(DIMS, 0, config=config()), "b": random_stack(DIMS, 1, config=config())})
    for rows in ([{"a": 1.0}] * 36 + [{"b": 1.0}], [{"a": 1.0}, {"b": 1.0}] * 32):
        for stack in bank.bind(rows).stacks:
            assert stack.rows is None
            assert len(stack.weights) == len(rows)


def test_a_weight_too_small_for_float32_is_no_weight() -> None:
    bank = bank_of({"a": random_stack(DIMS, 0, config=config())})
    x = inputs(2)
    for delta in fused(bank, [{"a": 1e-60}, {}], x, apart=True).values():
        assert not delta.any()


def test_a_step_reads_the_slots_in_use_and_a_weight_of_each_for_every_row() -> None:
    stacks = {f"d{i}": random_stack(DIMS, i, rounds=1 + i % 2, config=config()) for i in range(4)}
    bank = bank_of(stacks)
    s = config().scaling
    found = bank.slot_weights([{"d3": 0.5}, {}, {"d1": 1.0, "d0": 0.0}])
    assert found.slots.dtype == np.int32
    assert found.slots.tolist() == [*bank.resident("d1").slots, *bank.resident("d3").slots]
    expected = np.array([[0, 0, 0.5 * s, 0.5 * s], [0] * 4, [s, s, 0, 0]], np.float32)
    assert (found.weights == expected).all()
    assert found.weights.dtype == np.float32
