"""One token per row at its temperature, after top-k, min-p and top-p."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from brainstacks.engine.request import SamplingParams
from brainstacks.engine.sampling.logprobs import most_likely

_WIDTHS = (256, 4096)
"""Candidates that a draw with top-k or top-p looks at first; only if they do not settle it, more, then all.

Sorting a vocabulary of 49,152 takes ten times as long as finding its 256 highest.
"""

_BLOCK = 2**18
"""Values of logits that a CPU works on at a time: their float64 copies stay in its cache, and in memory that
the allocator keeps. More of them cost a page fault for every 4 KiB in every step."""


def draw(scores: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    """One token per row at its temperature > 0, after top-k, min-p and top-p.

    The candidates of a row have a fixed order: by falling probability, of equals the lowest id first; by id
    where neither top-k nor top-p asks for a rank. The token is the one at which the mass up to it exceeds
    the row's number in `uniforms`, times all mass that is kept.

    Args:
        scores: [S, V] float32, adjusted.
        uniforms: [S] in [0, 1).

    Returns:
        [S] int64; of a row that is not finite, any token.
    """
    count = max(1, _BLOCK // scores.shape[-1]) if scores.device.type == "cpu" else len(scores)
    blocks = (slice(start, start + count) for start in range(0, len(scores), count))
    return torch.cat([_draw(scores[rows], params[rows], uniforms[rows]) for rows in blocks])


def _draw(scores: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    vocab = scores.shape[-1]
    temperature, min_p, uniform = torch.tensor(
        [(p.temperature, p.min_p, u) for p, u in zip(params, uniforms, strict=True)],
        dtype=torch.float64,
        device=scores.device,
    ).unbind(dim=1)
    # In float64 small tails keep their mass. Less the highest first: a tiny temperature must not overflow.
    scaled = scores.double()
    scaled -= scaled.amax(-1, keepdim=True)
    scaled /= temperature[:, None]
    mass = scaled.softmax(-1)
    if any(p.min_p > 0.0 for p in params):
        mass *= mass >= min_p[:, None] * mass.amax(-1, keepdim=True)
    upto = mass.cumsum(-1)
    tokens = _invert(upto, upto[:, -1], uniform)
    waiting = [i for i, p in enumerate(params) if p.top_k > 0 or p.top_p < 1.0]
    for width in (*(w for w in _WIDTHS if w < vocab), vocab):
        ready = [i for i in waiting if width == vocab or params[i].top_k <= width]
        if ready:
            found, settled = _draw_ranked(
                select(scores, ready),
                select(mass, ready),
                select(upto[:, -1], ready),
                [params[i] for i in ready],
                select(uniform, ready),
                width,
            )
            tokens[ready] = found  # of a row that is not settled, again in the next round
            done = {i for i, is_settled in zip(ready, settled, strict=True) if is_settled}
            waiting = [i for i in waiting if i not in done]
    return tokens


def _draw_ranked(
    scores: Tensor,
    mass: Tensor,
    total: Tensor,
    params: Sequence[SamplingParams],
    uniform: Tensor,
    width: int,
) -> tuple[Tensor, list[bool]]:
    """Draw from the first `width` candidates.

    Args:
        scores, mass: [S, V] float32 and float64.
        total: [S] float64, the sum of `mass`.
        uniform: [S] float64.

    Returns:
        [S] tokens, and whether each is what all candidates together would have given: the last one that is
        kept stands strictly before the last one looked at, so neither it nor an equal of it was left out.
    """
    vocab = scores.shape[-1]
    top_k, top_p = torch.tensor(
        [(p.top_k or vocab, p.top_p if p.top_p < 1.0 else math.inf) for p in params],
        dtype=torch.float64,
        device=scores.device,
    ).unbind(dim=1)
    ids = most_likely(scores, width)
    kept = mass.gather(-1, ids)
    kept *= torch.arange(width, device=scores.device) < top_k[:, None]
    upto = kept.cumsum(-1)
    total = torch.where(top_k < vocab, upto[:, -1], total)
    # A token stays while the mass before it is below top_p, so the first always stays.
    before = torch.nn.functional.pad(upto[:, :-1], (1, 0))
    stays = (kept > 0) & (before < (top_p * total)[:, None])
    last = (stays.sum(-1, keepdim=True) - 1).clamp(min=0)
    tokens = ids.gather(-1, _invert(upto, upto.gather(-1, last)[:, 0], uniform)[:, None])[:, 0]
    if width == vocab:
        return tokens, [True] * len(params)
    settled = scores.gather(-1, ids.gather(-1, last)) > scores.gather(-1, ids[:, -1:])
    return tokens, settled[:, 0].tolist()


def _invert(upto: Tensor, limit: Tensor, uniform: Tensor) -> Tensor:
    """[S], the first place of each row of the cumulative masses [S, K] that exceeds `uniform * limit` [S]."""
    # The product can round to the limit itself, which nothing exceeds.
    target = torch.minimum(uniform * limit, limit.nextafter(limit.new_zeros(())))
    return torch.searchsorted(upto, target[:, None], right=True)[:, 0].clamp(max=upto.shape[-1] - 1)


def select(rows: Tensor, indices: list[int]) -> Tensor:
    """`rows[indices]`, without a copy where that is all of them."""
    return rows if len(indices) == len(rows) else rows[indices]
