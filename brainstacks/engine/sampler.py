"""Logits -> the next token of each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brainstacks.engine.completion import Completion
from brainstacks.engine.interface import Tokenizer
from brainstacks.engine.logprobs import NOT_FINITE, most_likely, token_logprobs
from brainstacks.engine.request import SamplingParams, TokenLogprob
from brainstacks.engine.sampling_state import SamplingState
from brainstacks.errors import EngineFailure

_WIDTHS = (256, 4096)
"""Candidates that a draw with top-k or top-p looks at first; only if they do not settle it, more, then all.

Sorting a vocabulary of 49,152 takes ten times as long as finding its 256 highest.
"""

_BLOCK = 2**18
"""Values of logits that a CPU works on at a time: their float64 copies stay in its cache, and in memory that
the allocator keeps. More of them cost a page fault for every 4 KiB in every step."""


@dataclass(frozen=True)
class Sampled:
    """A row's next token.

    Attributes:
        logprob: of `token` under the model's own distribution (nats), before everything in `SamplingParams`.
        entry: the same with its alternatives, for a request that asked for `logprobs`.
    """

    token: int
    logprob: float
    entry: TokenLogprob | None = None


class Sampler:
    """Chooses for all rows of a step in one pass.

    A row's result is the same, bit for bit, whatever rows are beside it: it depends on its own logits,
    parameters and draws only. On the CPU this needs operations that treat rows apart: softmax, cumsum, sort
    and topk along the last dimension do, `sum` and `logsumexp` do not.

    Args:
        tokenizer: for the texts of log-probabilities.
        ends: the base's end-of-sequence tokens.
    """

    def __init__(self, tokenizer: Tokenizer | None, ends: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ends = tuple(ends)

    def new_state(self, params: SamplingParams, prompt_ids: Sequence[int], seed: int | None) -> SamplingState:
        """The `sampling_state` of a new completion."""
        return SamplingState(params, prompt_ids, seed, self._ends)

    @torch.inference_mode()
    def sample(self, logits: Tensor, rows: Sequence[Completion]) -> list[Sampled | EngineFailure]:
        """Choose one token for each of `rows`, which stay as they are; only their `sampling_state` moves on.

        Args:
            logits: [R, V] float32, one row per completion; not changed.

        Returns:
            what was chosen; for a row whose logits are not finite, the error that its request ends with.
        """
        tokens = self._choose(logits, rows)
        # Of all rows: on a CPU log_softmax is faster than logsumexp.
        logprobs = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0].tolist()
        chosen = tokens.tolist()
        tops = {
            i: row.request.sampling.logprobs
            for i, row in enumerate(rows)
            if row.request.sampling.logprobs is not None and math.isfinite(logprobs[i])
        }
        asked = list(tops)
        found = token_logprobs(
            self._tokenizer, _select(logits, asked), [chosen[i] for i in asked], list(tops.values())
        )
        entries = dict(zip(asked, found, strict=True))
        return [
            Sampled(token, logprob, entries.get(i)) if math.isfinite(logprob) else EngineFailure(NOT_FINITE)
            for i, (token, logprob) in enumerate(zip(chosen, logprobs, strict=True))
        ]

    def _choose(self, logits: Tensor, rows: Sequence[Completion]) -> Tensor:
        """[R] int64."""
        scores = adjust(logits, rows)
        drawn = [i for i, row in enumerate(rows) if row.request.sampling.temperature > 0.0]
        if not drawn:
            return _argmax(scores)
        draws = draw(
            _select(scores, drawn),
            [rows[i].request.sampling for i in drawn],
            [rows[i].sampling_state.random.random() for i in drawn],
        )
        if len(drawn) == len(rows):
            return draws
        tokens = _argmax(scores)
        tokens[drawn] = draws
        return tokens


def adjust(logits: Tensor, rows: Sequence[Completion]) -> Tensor:
    """Penalties, bias and forbidden tokens, in OpenAI's and vLLM's order.

    For a token seen in prompt or output: l > 0 ? l / repetition : l * repetition; then for one seen n times
    in the output: - n * frequency - (n > 0) * presence; then + bias; then -inf if it may not be chosen yet.

    Returns:
        [R, V] float32; `logits` itself when there is nothing to do. Finite where `logits` is, but for -inf.
    """
    todo = [(at, row) for at, row in enumerate(rows) if row.sampling_state.adjusts(row.output_ids)]
    if not todo:
        return logits
    adjusted = logits.clone()
    flat = adjusted.view(-1)

    def places(pieces: list[tuple[int, Tensor]]) -> Tensor:
        """Indices into `flat` of (row, its token ids)."""
        return torch.cat([at * logits.shape[-1] + ids for at, ids in pieces]).to(logits.device)

    penalised = [
        (at, row.request.sampling, *row.sampling_state.seen(row.output_ids))
        for at, row in todo
        if row.sampling_state.penalised
    ]
    if penalised:
        where = places([(at, ids) for at, _, ids, _ in penalised])
        counts = torch.cat([counts for *_, counts in penalised]).to(logits.device)
        options = torch.tensor(
            [(p.repetition_penalty, p.frequency_penalty, p.presence_penalty) for _, p, _, _ in penalised]
        )
        sizes = torch.tensor([len(ids) for _, _, ids, _ in penalised])
        repetition, frequency, presence = (
            options.repeat_interleave(sizes, dim=0).to(logits.device).unbind(dim=1)
        )
        values = flat[where]
        values = torch.where(values > 0, values / repetition, values * repetition)
        values -= frequency * counts + presence * (counts > 0)
        flat[where] = values.clamp(max=torch.finfo(values.dtype).max)
    biased = [(at, row.sampling_state) for at, row in todo if len(row.sampling_state.bias_ids)]
    if biased:
        where = places([(at, state.bias_ids) for at, state in biased])
        flat[where] += torch.cat([state.bias for _, state in biased]).to(logits.device)
    held = [(at, row.sampling_state) for at, row in todo if not row.sampling_state.may_end(row.output_ids)]
    if held:
        flat[places([(at, state.forbidden) for at, state in held])] = float("-inf")
    return adjusted


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
                _select(scores, ready),
                _select(mass, ready),
                _select(upto[:, -1], ready),
                [params[i] for i in ready],
                _select(uniform, ready),
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


def _argmax(scores: Tensor) -> Tensor:
    """The first of the highest of each row, [R] int64."""
    if scores.device.type != "cpu":
        return scores.argmax(-1)
    # NumPy's is vectorised; torch's is not.
    return torch.from_numpy(scores.numpy().argmax(-1))


def _select(rows: Tensor, indices: list[int]) -> Tensor:
    """`rows[indices]`, without a copy where that is all of them."""
    return rows if len(indices) == len(rows) else rows[indices]
