"""One token per row: the highest, or one drawn at its temperature, after top-k, min-p and top-p."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from brainstacks.engine.request import SamplingParams
from brainstacks.engine.sampling.logprobs import most_likely
from brainstacks.engine.sampling.transfers import to_device

_BLOCK = 2**18
"""Values of logits that a CPU works on at a time: their float64 copies stay in its cache, and in memory that
the allocator keeps. More of them cost a page fault for every 4 KiB in every step."""


def choose(
    scores: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float], *, wait: bool
) -> tuple[Tensor, Tensor | None]:
    """One token per row: at temperature 0 the first of the highest, else drawn after top-k, min-p and top-p.

    The candidates of a row have a fixed order: by falling probability, of equals the lowest id first; by id
    where neither top-k nor top-p asks for a rank. The token is the one at which the mass up to it exceeds
    the row's number in `uniforms`, times all mass that is kept.

    Args:
        scores: [R, V] float32, adjusted.
        uniforms: [R] in [0, 1), of which only a draw uses its own.
        wait: look at the device's results, and at more candidates of the rows that these do not settle.
            Otherwise no shape and no branch depends on what is computed.

    Returns:
        [R] int64; of a row that is not finite, any token. [R] bool, which of them are settled: what all
        candidates together would give; None for all.
    """
    if all(p.temperature == 0.0 for p in params):
        return _argmax(scores), None
    count = max(1, _BLOCK // scores.shape[-1]) if scores.device.type == "cpu" else len(scores)
    if len(scores) <= count:
        return _choose(scores, params, uniforms, wait)
    blocks = [slice(start, start + count) for start in range(0, len(scores), count)]
    found = [_choose(scores[rows], params[rows], uniforms[rows], wait) for rows in blocks]
    tokens = [tokens for tokens, _ in found]
    settled = [settled for _, settled in found if settled is not None]
    return torch.cat(tokens), None if wait else torch.cat(settled)


def _choose(
    scores: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float], wait: bool
) -> tuple[Tensor, Tensor | None]:
    device, vocab = scores.device, scores.shape[-1]
    drawn = [row for row, p in enumerate(params) if p.temperature > 0.0]
    if not drawn:
        return _argmax(scores), None if wait else _sure(scores)
    own = [params[row] for row in drawn]
    looks = _looks(own, _widths(device, vocab))
    temperature, min_p, top_k, top_p, uniform, rows, *firsts = to_device(
        [
            [p.temperature for p in own],
            [p.min_p for p in own],
            [p.top_k or vocab for p in own],
            [p.top_p if p.top_p < 1.0 else math.inf for p in own],
            [uniforms[row] for row in drawn],
            drawn,
            *looks.values(),
        ],
        device,
    )
    candidates = _pick(scores, rows)
    # In float64 small tails keep their mass. Less the highest first: a tiny temperature must not overflow.
    scaled = candidates.double()
    scaled -= scaled.amax(-1, keepdim=True)
    scaled /= temperature[:, None]
    mass = scaled.softmax(-1)
    if any(p.min_p > 0.0 for p in own):
        mass *= mass >= min_p[:, None] * mass.amax(-1, keepdim=True)
    upto = mass.cumsum(-1)
    total = upto[:, -1]
    tokens = _invert(upto, total, uniform)
    settled = None if wait else _sure(tokens)
    again: list[int] = []  # rows that a look has not settled
    for (width, first), places in zip(looks.items(), firsts, strict=True):
        looking = sorted([*first, *again])
        if again:
            (places,) = to_device([looking], device)
        if looking:
            some = (_pick(values, places) for values in (candidates, mass, total, top_k, top_p, uniform))
            found, sure = _draw_ranked(*some, width=width)
            tokens = _put(tokens, places, found)
            if settled is not None:
                settled = _put(settled, places, sure)
            else:
                again = [place for place, done in zip(looking, sure.tolist(), strict=True) if not done]
    if len(drawn) < len(params):
        tokens = _put(_argmax(scores), rows, tokens)
        settled = None if settled is None else _put(_sure(scores), rows, settled)
    return tokens, settled


def _widths(device: torch.device, vocab: int) -> list[int]:
    """Candidates that a draw with top-k or top-p looks at: few first; only if they do not settle it, more.

    Sorting a vocabulary of 49,152 takes a CPU ten times as long as finding its 256 highest. A GPU finds more
    of them in hardly more time, and each further look costs it a wait.
    """
    few = (256, 4096) if device.type == "cpu" else (1024, 16_384)
    return [*(width for width in few if width < vocab), vocab]


def _looks(params: Sequence[SamplingParams], widths: Sequence[int]) -> dict[int, list[int]]:
    """Width -> the rows with top-k or top-p that look at so many candidates first; the narrowest first."""
    looks: dict[int, list[int]] = {width: [] for width in widths}
    for row, p in enumerate(params):
        if p.top_k > 0 or p.top_p < 1.0:
            looks[next((width for width in widths if p.top_k <= width), widths[-1])].append(row)
    return looks


def _draw_ranked(
    scores: Tensor, mass: Tensor, total: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor, *, width: int
) -> tuple[Tensor, Tensor]:
    """Draw from the first `width` candidates.

    Args:
        scores, mass: [S, V] float32 and float64.
        total: [S] float64, the sum of `mass`.
        top_k, top_p, uniform: [S] float64; V and infinity where there is none.

    Returns:
        [S] tokens, and [S] whether each is what all candidates together would have given: the last one that
        is kept stands strictly before the last one looked at, so neither it nor an equal of it was left out.
    """
    vocab = scores.shape[-1]
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
        return tokens, _sure(tokens)
    settled = scores.gather(-1, ids.gather(-1, last)) > scores.gather(-1, ids[:, -1:])
    return tokens, settled[:, 0]


def _invert(upto: Tensor, limit: Tensor, uniform: Tensor) -> Tensor:
    """[S], the first place of each row of the cumulative masses [S, K] that exceeds `uniform * limit` [S]."""
    # The product can round to the limit itself, which nothing exceeds.
    target = torch.minimum(uniform * limit, limit.nextafter(limit.new_zeros(())))
    return torch.searchsorted(upto, target[:, None], right=True)[:, 0].clamp(max=upto.shape[-1] - 1)


def _argmax(scores: Tensor) -> Tensor:
    """The first of the highest of each row, [R] int64."""
    if scores.device.type != "cpu":
        return scores.argmax(-1)
    # NumPy's is vectorised; torch's is not.
    return torch.from_numpy(scores.numpy().argmax(-1))


def _sure(rows: Tensor) -> Tensor:
    """[R] bool: all are settled."""
    return torch.ones(len(rows), dtype=torch.bool, device=rows.device)


def _pick(values: Tensor, places: Tensor) -> Tensor:
    """`values[places]`, which ascend; without a copy where these are all."""
    return values if len(places) == len(values) else values.index_select(0, places.long())


def _put(values: Tensor, places: Tensor, new: Tensor) -> Tensor:
    """`values`, with `new` in `places`."""
    return new if len(places) == len(values) else values.index_copy(0, places.long(), new)
