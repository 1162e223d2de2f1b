"""The compiled deltas of a step of few tokens equal PyTorch's path and the plain loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from brainstacks.config import PROJECTIONS
from brainstacks.kernels.deltas import MAX_TOKENS
from brainstacks.layers.bank import BoundBank
from brainstacks.layers.hooks import LowRank
from tests.layers.composing import (
    DIMS,
    assert_equal,
    assert_same,
    config,
    fused,
    fused_tokens,
    inputs,
    outputs,
    plain,
    rounded,
)
from tests.tiny import bank_of, plain_delta, random_stack

SHAPES = [
    config(),
    config(rank=1, experts=1, top_k=1),
    config(rank=3, experts=6, top_k=2, projections=("q_proj", "o_proj", "up_proj")),
    config(rank=8, experts=2, top_k=1),
    config(rank=16, experts=4, top_k=4, projections=("k_proj", "v_proj", "down_proj")),
    config(rank=20, experts=5, top_k=3),
]
WEIGHTS = [0.0, 0.0, 1.0, 0.3, -1.5]


def random_weights(keys: Mapping[Any, object], tokens: int, seed: int) -> list[dict[Any, float]]:
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(WEIGHTS), (tokens, len(keys)), generator=random).tolist()
    return [{key: WEIGHTS[i] for key, i in zip(keys, row, strict=True)} for row in drawn]


def is_compiled(bound: BoundBank, x: Tensor) -> bool:
    """Whether the deltas of the first input group are compiled; all of them are, or none."""
    kinds = {isinstance(c, LowRank) for found in bound.corrections(0, 0, x).values() for c in found}
    (low_rank,) = kinds
    return not low_rank


@given(
    tokens=st.sampled_from([1, 2, 3, 5, MAX_TOKENS, MAX_TOKENS + 1]),
    shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=5),
    rounds=st.integers(1, 3),
    seed=st.integers(0, 99),
    invariant=st.booleans(),
)
@example(tokens=MAX_TOKENS, shapes=SHAPES, rounds=1, seed=0, invariant=False)
@example(tokens=1, shapes=SHAPES, rounds=2, seed=1, invariant=False)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_a_weight_per_token_equals_pytorch_and_the_plain_loops_for_any_mix(
    tokens: int, shapes: list[Any], rounds: int, seed: int, invariant: bool
) -> None:
    stacks = {
        f"d{i}": random_stack(DIMS, seed + i, rounds=1 + (rounds + i) % 3, config=shape)
        for i, shape in enumerate(shapes)
    }
    weights = random_weights(stacks, tokens, seed)
    x = inputs(tokens, 1, seed)
    bank = bank_of(stacks)
    found = fused_tokens(bank, weights, x, invariant=invariant)
    assert_same(found, fused(bank, weights, x))
    assert_same(found, plain(stacks, weights, x))


@pytest.mark.parametrize("tokens", [1, 5, MAX_TOKENS])
def test_in_bfloat16_only_the_output_is_rounded(tokens: int) -> None:
    stacks = {i: random_stack(DIMS, i, rounds=2, config=shape) for i, shape in enumerate(SHAPES[3:])}
    x = inputs(tokens, 1, dtype=torch.bfloat16)
    base = outputs(x)
    bank = bank_of(stacks, torch.bfloat16)
    for i in stacks:
        weights = random_weights({i: 0}, tokens, seed=i)
        found = fused_tokens(bank, weights, x, onto=base)
        delta = plain(rounded(stacks), weights, [t.float() for t in x])
        for name in PROJECTIONS:
            exact = base[name].float() + delta[name]
            # One rounding to bfloat16 errs by at most 2**-8 of the value.
            torch.testing.assert_close(found[name].float(), exact, rtol=2**-8, atol=1e-5)


def test_several_shapes_in_bfloat16_are_within_a_rounding_each() -> None:
    stacks = {i: random_stack(DIMS, i, config=shape) for i, shape in enumerate(SHAPES)}
    x = inputs(7, 1, dtype=torch.bfloat16)
    weights = random_weights(stacks, 7, seed=0)
    found = fused_tokens(bank_of(stacks, torch.bfloat16), weights, x)
    exact = plain(rounded(stacks), weights, [t.float() for t in x])
    assert_same({name: t.float() for name, t in found.items()}, exact, tolerance=len(SHAPES) * 2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_invariant_gives_a_token_the_same_bits_alone_and_among_any_others_at_any_place(
    dtype: torch.dtype,
) -> None:
    # Whole numbers as keys: the order of a set of them shows an order of summation that follows the set.
    stacks = {i: random_stack(DIMS, i, rounds=1 + i % 2, config=SHAPES[i % 6]) for i in range(9)}
    bank = bank_of(stacks, dtype)
    tokens = 17
    weights = [*random_weights(stacks, tokens - 2, seed=0), {}, {7: 1.0, 8: 0.3}]
    x = inputs(tokens, 1, dtype=dtype)
    base = outputs(x)
    together = fused_tokens(bank, weights, x, invariant=True, onto=base)

    def some(places: list[int]) -> dict[str, Tensor]:
        return fused_tokens(
            bank,
            [weights[i] for i in places],
            [t[places] for t in x],
            invariant=True,
            onto={name: t[places] for name, t in base.items()},
        )

    for i in range(tokens):
        assert_equal(some([i]), {name: t[[i]] for name, t in together.items()})
    shuffled = torch.randperm(tokens, generator=torch.Generator().manual_seed(0)).tolist()
    for places in (shuffled, shuffled[:2], shuffled[3:6], shuffled[5:12]):
        assert_equal(some(places), {name: t[places] for name, t in together.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_tokens_are_compiled_and_many_are_not(dtype: torch.dtype) -> None:
    bank = bank_of({"d": random_stack(DIMS, 0, config=config())}, dtype)
    for tokens, expected in ((1, True), (MAX_TOKENS, True), (MAX_TOKENS + 1, False)):
        bound = bank.bind([{"d": 1.0}] * tokens, packed=True)
        assert is_compiled(bound, inputs(1, tokens, dtype=dtype)[0]) is expected, tokens
    assert not is_compiled(bank.bind([{"d": 1.0}]), inputs(1, 5, dtype=dtype)[0]), "a weight per row"


def test_what_the_loops_cannot_compute_takes_the_path_of_pytorch() -> None:
    stacks = {"d": random_stack(DIMS, 0, config=config())}
    weights = [{"d": 1.0}] * 5
    bound = bank_of(stacks).bind(weights, packed=True)
    x = inputs(1)[0]
    assert is_compiled(bound, x)
    assert not is_compiled(bound, x.clone().requires_grad_())
    assert not is_compiled(bound, x.transpose(1, 2).contiguous().transpose(1, 2)), "not contiguous"
    in_double = bank_of(stacks, torch.float64).bind(weights, packed=True)
    assert not is_compiled(in_double, x.double())


def test_a_gradient_flows_through_a_packed_batch_to_its_input() -> None:
    stack = random_stack(DIMS, 0, rounds=2, config=config())
    bound = bank_of({"d": stack}).bind([{"d": 0.7}] * 5, packed=True)
    x = inputs(1)[0]
    leaf, expected = (x.clone().requires_grad_() for _ in range(2))
    (correction,) = bound.corrections(0, 0, leaf)["q_proj"]
    correction(torch.zeros(1, 5, DIMS["q_proj"][1])).square().sum().backward()
    (0.7 * plain_delta(stack, 0, "q_proj", expected)).square().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.any()
    torch.testing.assert_close(leaf.grad, expected.grad, atol=1e-5, rtol=1e-5)


def test_a_token_without_a_stack_keeps_the_bits_of_its_output_beside_tokens_that_have_some() -> None:
    stacks = {i: random_stack(DIMS, i, config=shape) for i, shape in enumerate(SHAPES)}
    x = inputs(4, 1)
    base = outputs(x)
    weights = [{0: 1.0}, {}, dict.fromkeys(stacks, 0.5), dict.fromkeys(stacks, 0.0)]
    found = fused_tokens(bank_of(stacks), weights, x, onto=base)
    for name, output in base.items():
        assert torch.equal(found[name][[1, 3]], output[[1, 3]]), name
        assert not torch.equal(found[name][2], output[2]), name
