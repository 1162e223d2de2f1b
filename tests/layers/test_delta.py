"""The fused form of one delta equals the paper's sum over experts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brainstacks.layers.delta import gate_weights, gated_hidden, pack_down, reference_delta


def by_hand(
    x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, gate: torch.Tensor, top_k: int, s: float
) -> torch.Tensor:
    """The paper's sum for a single token [d_in], with Python's own sort in place of top-k."""
    experts = gate.shape[0]
    rank = A.shape[0] // experts
    logits = [float(gate[e] @ x) for e in range(experts)]
    kept = sorted(range(experts), key=lambda e: -logits[e])[:top_k]
    total = sum(torch.tensor(logits[e]).exp() for e in kept)
    out = torch.zeros(B.shape[0])
    for e in kept:
        rows = slice(e * rank, (e + 1) * rank)
        out += torch.tensor(logits[e]).exp() / total * s * (B[:, rows] @ (A[rows] @ x))
    return out


@given(st.integers(1, 8), st.data())
def test_gate_keeps_k_experts_that_sum_to_one_in_the_order_of_their_logits(
    experts: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, experts))
    logits = torch.randn(
        3, 5, experts, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    )
    weights = gate_weights(logits, top_k)
    assert weights.dtype == torch.float32
    assert ((weights > 0).sum(-1) == top_k).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 5))
    kept = weights > 0
    assert (
        logits.masked_fill(~kept, float("inf")).amin(-1) >= logits.masked_fill(kept, float("-inf")).amax(-1)
    ).all()


def test_reference_delta_is_the_papers_sum_token_by_token() -> None:
    random = torch.Generator().manual_seed(0)
    A, B, gate = (torch.randn(shape, generator=random) for shape in ((12, 5), (7, 12), (4, 5)))
    x = torch.randn(2, 3, 5, generator=random)
    delta = reference_delta(x, A, B, gate, top_k=2, scaling=1.7)
    for row in range(2):
        for t in range(3):
            torch.testing.assert_close(
                delta[row, t], by_hand(x[row, t], A, B, gate, 2, 1.7), atol=1e-5, rtol=1e-5
            )


def test_a_single_expert_is_plain_lora() -> None:
    random = torch.Generator().manual_seed(1)
    A, B, gate = (torch.randn(shape, generator=random) for shape in ((3, 5), (7, 3), (1, 5)))
    x = torch.randn(4, 5, generator=random)
    torch.testing.assert_close(reference_delta(x, A, B, gate, top_k=1, scaling=2.0), 2.0 * x @ A.T @ B.T)


@pytest.mark.parametrize("projections", [1, 2, 3])
def test_fused_hidden_of_projections_that_share_an_input_equals_the_reference(projections: int) -> None:
    random = torch.Generator().manual_seed(2)
    experts, rank, rounds = 3, 2, 2

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    A = [[draw(experts * rank, 5) for _ in range(projections)] for _ in range(rounds)]
    gate = [[draw(experts, 5) for _ in range(projections)] for _ in range(rounds)]
    B = [[draw(4 + p, experts * rank) for p in range(projections)] for _ in range(rounds)]
    x = draw(2, 3, 5)
    row_weights = torch.tensor([[0.3, 2.0], [0.0, -1.1]])  # [rows, rounds]
    down = x @ torch.cat([pack_down(A[n], gate[n]) for n in range(rounds)]).T
    hidden, gates = gated_hidden(
        down,
        projections=projections,
        experts=experts,
        rank=rank,
        top_k=2,
        weights=row_weights[:, None, :, None, None],
    )
    assert hidden.shape == (projections, 2, 3, rounds * experts * rank)
    assert gates.shape == (2, 3, rounds, projections, experts)
    for p in range(projections):
        fused = hidden[p] @ torch.cat([B[n][p] for n in range(rounds)], dim=1).T
        plain = sum(
            row_weights[:, n, None, None]
            * reference_delta(x, A[n][p], B[n][p], gate[n][p], top_k=2, scaling=1.0)
            for n in range(rounds)
        )
        torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-5)


def test_noise_moves_the_gate_and_nothing_else() -> None:
    random = torch.Generator().manual_seed(3)
    down = torch.randn(1, 2, 3 * (2 + 1), generator=random)
    noise = torch.tensor([100.0, 0.0, 0.0]).expand(1, 2, 1, 1, 3)
    weights = torch.ones(1)
    hidden, gates = gated_hidden(
        down, projections=1, experts=3, rank=2, top_k=1, weights=weights, noise=noise
    )
    assert (gates[..., 0] == 1).all()
    torch.testing.assert_close(hidden[0, ..., :2], down[..., :2])
    assert (hidden[0, ..., 2:] == 0).all()
