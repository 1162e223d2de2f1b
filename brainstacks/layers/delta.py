"""The maths of one MoE-LoRA delta (paper, section 3.1).

For a frozen linear `W: d_in -> d_out`, N experts of rank r of which the gate keeps K per token:

    l        = x G^T                       G: [N, d_in]        gate logits
    g        = softmax(top-K of l)         exactly K non-zero, sum 1
    delta(x) = sum_e g_e * s * B_e (A_e x)  A_e: [r, d_in], B_e: [d_out, r], s = alpha / sqrt(r)

`reference_delta` is that sum, written as the paper writes it. `gated_hidden` is the form used
everywhere else: with the experts stacked along the rank, the gate multiplies a small intermediate and
one GEMM goes up, `delta(x) = B_all (expand(w * s * g) * (A_all x))`. Stacks and rounds concatenate
along that same axis, and a weight per row and round multiplies the same intermediate, so requests with
different compositions share one batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gate_weights(logits: Tensor, top_k: int) -> Tensor:
    """softmax over the top-K logits, zero elsewhere.

    Args:
        logits: [..., N].
        top_k: K, experts kept per token, 1..N.

    Returns:
        [..., N] float32 (float64 for float64 logits); each row has K non-zero entries that sum to 1.
    """
    if logits.dtype != torch.float64:
        logits = logits.float()
    if top_k == logits.shape[-1]:
        return logits.softmax(dim=-1)
    values, indices = logits.topk(top_k, dim=-1)
    return torch.zeros_like(logits).scatter_(-1, indices, values.softmax(dim=-1))


def reference_delta(x: Tensor, A: Tensor, B: Tensor, gate: Tensor, *, top_k: int, scaling: float) -> Tensor:
    """One delta, expert by expert: the slow, obvious form that the fused one is tested against.

    Args:
        x: [..., d_in].
        A: [N*r, d_in]; rows e*r..(e+1)*r are A_e.
        B: [d_out, N*r]; columns e*r..(e+1)*r are B_e.
        gate: [N, d_in].

    Returns:
        [..., d_out], in x's dtype.
    """
    experts = gate.shape[0]
    rank = A.shape[0] // experts
    weights = gate_weights(x @ gate.T, top_k).to(x.dtype)
    out = x.new_zeros(*x.shape[:-1], B.shape[0])
    for e in range(experts):
        rows = slice(e * rank, (e + 1) * rank)
        out = out + weights[..., e : e + 1] * (scaling * ((x @ A[rows].T) @ B[:, rows].T))
    return out


def gated_hidden(
    down: Tensor,
    *,
    projections: int,
    experts: int,
    rank: int,
    top_k: int,
    weights: Tensor,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gate and scale the low-rank activations of G rounds and of the P projections that share one input.

    Args:
        down: [..., G * P * N * (r + 1)], output of the shared down-GEMM: for each round the A-activations
            [P, N, r], then the gate logits [P, N].
        weights: broadcastable to [..., G, 1, 1] float32: composition weight times s of each round.
        noise: [..., G, P, N] added to the logits (training only).

    Returns:
        hidden [P, ..., G*N*r] in down's dtype, ready for one up-GEMM per projection;
        gates [..., G, P, N] float32, before `weights`.
    """
    # Plain views: for one token the arithmetic is microseconds, and so is every Python-level helper.
    lead = down.shape[:-1]
    split = projections * experts * rank
    per_round = down.view(*lead, -1, split + projections * experts)
    rounds = per_round.shape[-2]
    activations = per_round[..., :split].view(*lead, rounds, projections, experts, rank)
    logits = per_round[..., split:].view(*lead, rounds, projections, experts)
    gates = gate_weights(logits if noise is None else logits + noise, top_k)
    hidden = activations * (gates * weights).to(down.dtype).unsqueeze(-1)
    if projections > 1:
        hidden = hidden.movedim(-3, 0)
    return hidden.reshape(projections, *lead, rounds * experts * rank), gates


def pack_down(A: list[Tensor], gate: list[Tensor]) -> Tensor:
    """Rows of one round's shared down-GEMM: the A of every projection, then every gate.

    Args:
        A: per projection [N*r, d_in].
        gate: per projection [N, d_in].

    Returns:
        [P * N * (r + 1), d_in], the layout that `gated_hidden` reads.
    """
    return torch.cat([*A, *gate], dim=0)
