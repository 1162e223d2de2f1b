"""The compiled deltas equal the sum over experts, for any shape, and spill over from no token to another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brainstacks.kernels import deltas
from brainstacks.kernels.deltas import COLUMNS, FIELDS, MAX_TOKENS, Kernels
from brainstacks.layers.delta import pack_down, reference_delta

DTYPES = [torch.float32, torch.bfloat16]


@dataclass(frozen=True)
class Batch:
    """T tokens, G rounds of P projections that share an input.

    Attributes:
        x: [T, d_in]; outputs: per projection [T, d_out], what the deltas are added to.
        weights: [G, T] float32.
        A: [G][P] of [N*r, d_in]; gate: [G][P] of [N, d_in]; B: [G][P] of [d_out, N*r].
    """

    x: Tensor
    outputs: list[Tensor]
    weights: Tensor
    A: list[list[Tensor]]
    gate: list[list[Tensor]]
    B: list[list[Tensor]]
    top_k: int

    @property
    def experts(self) -> int:
        return self.gate[0][0].shape[0]

    @property
    def rank(self) -> int:
        return self.A[0][0].shape[0] // self.experts

    def tokens(self, places: list[int]) -> Batch:
        """The same with only some of the tokens."""
        outputs = [output[places] for output in self.outputs]
        return replace(self, x=self.x[places], outputs=outputs, weights=self.weights[:, places].contiguous())


def random_batch(
    tokens: int = 5,
    rounds: int = 2,
    experts: int = 4,
    rank: int = 8,
    top_k: int = 2,
    d_in: int = 37,
    d_outs: tuple[int, ...] = (40, 300),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """About half of the weights are 0."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        drawn: Tensor = torch.randn(shape, generator=random) * shape[-1] ** -0.5
        return drawn.to(dtype)

    weights = torch.randn(rounds, tokens, generator=random)
    weights *= torch.rand(rounds, tokens, generator=random) < 0.5
    return Batch(
        x=draw(tokens, d_in) * d_in**0.5,
        outputs=[draw(tokens, d_out) for d_out in d_outs],
        weights=weights,
        A=[[draw(experts * rank, d_in) for _ in d_outs] for _ in range(rounds)],
        gate=[[draw(experts, d_in) for _ in d_outs] for _ in range(rounds)],
        B=[[draw(d_out, experts * rank) for d_out in d_outs] for _ in range(rounds)],
        top_k=top_k,
    )


def computed(batch: Batch, *, invariant: bool = False, kernels: Kernels | None = None) -> list[Tensor]:
    """The outputs with the deltas added, by the kernels."""
    kernels = kernels or Kernels.of(batch.x.dtype == torch.float32)
    tokens, d_in = batch.x.shape
    rounds, projections, experts, rank = len(batch.A), len(batch.outputs), batch.experts, batch.rank
    down = [pack_down(A, gate) for A, gate in zip(batch.A, batch.gate, strict=True)]
    up = [[B[p].T.contiguous() for B in batch.B] for p in range(projections)]
    down_pointers = np.array([t.data_ptr() for t in down])
    up_pointers = np.array([[t.data_ptr() for t in of_rounds] for of_rounds in up])
    # What a call does not write must not be read: scratch memory is full of NaN.
    x32 = torch.full((tokens, d_in), torch.nan)
    hidden = torch.full((projections, rounds, tokens, experts * rank), torch.nan)
    gates = torch.full((projections, rounds, tokens, experts), torch.nan)
    fields = {
        "invariant": int(invariant),
        "tokens": tokens,
        "rounds": rounds,
        "projections": projections,
        "experts": experts,
        "rank": rank,
        "top_k": batch.top_k,
        "d_in": d_in,
        "down_pointers": down_pointers.ctypes.data,
        "up_pointers": up_pointers.ctypes.data,
        "weights": batch.weights.data_ptr(),
        "x32": x32.data_ptr(),
        "hidden": hidden.data_ptr(),
        "gates": gates.data_ptr(),
    }
    call = np.array([fields.get(name, 0) for name in FIELDS], np.int64)
    kernels.down(call, batch.x.data_ptr())
    found = [output.clone() for output in batch.outputs]
    for p, output in enumerate(found):
        kernels.up(call, p, output.data_ptr(), output.shape[1])
    return found


def by_experts(batch: Batch) -> list[Tensor]:
    """The same in float64, round by round, expert by expert."""
    found = []
    for p, output in enumerate(batch.outputs):
        total = output.double()
        for A, B, gate, weights in zip(batch.A, batch.B, batch.gate, batch.weights, strict=True):
            parts = (A[p].double(), B[p].double(), gate[p].double())
            delta = reference_delta(batch.x.double(), *parts, top_k=batch.top_k, scaling=1.0)
            total += weights[:, None].double() * delta
        found.append(total)
    return found


def assert_near(found: list[Tensor], exact: list[Tensor]) -> None:
    """Equal up to float32 sums, and up to one rounding where the outputs are bfloat16."""
    for left, right in zip(found, exact, strict=True):
        relative = 1e-5 if left.dtype == torch.float32 else 2**-8
        torch.testing.assert_close(left.double(), right, rtol=relative, atol=2e-5)


def assert_equal(left: list[Tensor], right: list[Tensor]) -> None:
    assert len(left) == len(right)
    for p, (a, b) in enumerate(zip(left, right, strict=True)):
        assert torch.equal(a, b), f"projection {p}"


@given(
    tokens=st.sampled_from([1, 2, 3, 4, 5, 9, MAX_TOKENS]),
    rounds=st.integers(1, 4),
    experts=st.integers(1, 6),
    rank=st.sampled_from([1, 2, 3, 8, 16, 20]),
    kept=st.integers(0, 5),
    d_in=st.sampled_from([1, 5, 16, 37, 255, 300]),
    d_outs=st.lists(
        st.sampled_from([1, 3, 17, COLUMNS - 1, COLUMNS, COLUMNS + 1, 600]), min_size=1, max_size=3
    ),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(DTYPES),
    invariant=st.booleans(),
)
@settings(max_examples=40)
def test_deltas_equal_the_sum_over_experts_for_any_shape(
    tokens: int,
    rounds: int,
    experts: int,
    rank: int,
    kept: int,
    d_in: int,
    d_outs: list[int],
    seed: int,
    dtype: torch.dtype,
    invariant: bool,
) -> None:
    top_k = 1 + kept % experts
    batch = random_batch(tokens, rounds, experts, rank, top_k, d_in, tuple(d_outs), seed, dtype)
    assert_near(computed(batch, invariant=invariant), by_experts(batch))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [2, 16])
def test_invariant_gives_a_token_the_same_bits_in_any_company_at_any_place(
    rank: int, dtype: torch.dtype
) -> None:
    batch = random_batch(tokens=11, rounds=3, rank=rank, d_in=64, dtype=dtype)
    together = computed(batch, invariant=True)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0)).tolist()
    for places in [*([i] for i in range(11)), order, order[:2], order[2:5], order[5:9]]:
        alone = computed(batch.tokens(places), invariant=True)
        assert_equal(alone, [output[places] for output in together])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_none_shows_in_its_own_token_and_in_no_other(bad: float, dtype: torch.dtype) -> None:
    batch = random_batch(tokens=6, rounds=1, rank=3, dtype=dtype)
    batch = replace(batch, weights=torch.ones(1, 6))
    x = batch.x.clone()
    x[2, 7] = bad
    found = computed(replace(batch, x=x), invariant=True)
    others = [0, 1, 3, 4, 5]
    assert_equal(
        [output[others] for output in found],
        [output[others] for output in computed(batch, invariant=True)],
    )
    for output in (*found, *computed(replace(batch, x=x).tokens([2]))):
        assert not output[2 if len(output) > 1 else 0].isfinite().any()
    silent = replace(batch, x=x, weights=torch.tensor([[1.0, 1.0, 0.0, 1.0, 1.0, 1.0]]))
    for output, before in zip(computed(silent), batch.outputs, strict=True):
        assert torch.equal(output[2], before[2]), "its weight is 0"


@pytest.mark.parametrize("tokens", [1, 5])
def test_among_equal_logits_the_first_experts_are_chosen(tokens: int) -> None:
    batch = random_batch(tokens, rounds=1, experts=4, top_k=2, d_outs=(40,))
    batch = replace(batch, weights=torch.ones(1, tokens))
    x, A, B, gate = batch.x.double(), batch.A[0][0].double(), batch.B[0][0].double(), batch.gate[0][0]

    def expert(e: int) -> Tensor:
        rows = slice(e * batch.rank, (e + 1) * batch.rank)
        return x @ A[rows].T @ B[:, rows].T

    level = replace(batch, gate=[[torch.zeros_like(gate)]])
    expected = batch.outputs[0] + (expert(0) + expert(1)) / 2
    assert_near(computed(level), [expected])

    # Expert 3 wins by far; 1 and 2 are equal, and before 0.
    x_up = batch.x.abs()
    ones = torch.ones_like(gate[0])
    ranked = replace(batch, x=x_up, gate=[[torch.stack([-ones, ones, ones, 2 * ones])]])
    x = x_up.double()
    share = (-x.sum(dim=1, keepdim=True)).exp()
    expected = batch.outputs[0] + (expert(3) + share * expert(1)) / (1 + share)
    assert_near(computed(ranked), [expected])


@pytest.fixture
def set_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("set_threads")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 7])
def test_any_number_of_threads_and_no_team_at_all_give_the_same_bits(
    tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = random_batch(tokens, rounds=4, d_in=300, d_outs=(600, 40, 300), dtype=dtype)
    torch.set_num_threads(1)
    expected = computed(batch)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert_equal(computed(batch), expected)
    monkeypatch.setattr(deltas, "parallel_address", lambda: 0)
    without = Kernels.of.__wrapped__(dtype == torch.float32)
    assert_equal(computed(batch, kernels=without), expected)


@pytest.mark.parametrize("top_k", [1, 4])
def test_weights_of_zero_leave_every_output_as_it_is(top_k: int) -> None:
    batch = random_batch(top_k=top_k)
    batch = replace(batch, weights=torch.zeros_like(batch.weights))
    assert_equal(computed(batch), batch.outputs)
