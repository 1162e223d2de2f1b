"""Logits -> the next token of each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from brainstacks.engine.completion import Completion
from brainstacks.engine.interface import Tokenizer
from brainstacks.engine.request import SamplingParams, TokenLogprob
from brainstacks.engine.sampling.draw import draw, select
from brainstacks.engine.sampling.logprobs import NOT_FINITE, token_logprobs
from brainstacks.errors import BrainstacksError, EngineFailure, InvalidRequest


class SamplingState:
    """Made once per completion; it outlives preemption.

    Args:
        params: of the request.
        prompt_ids: its prompt.
        seed: of this completion's own draws, any integer; None draws one.
        ends: the base's end-of-sequence tokens.

    Attributes:
        random: one number in [0, 1) of it per drawn token, so that no neighbour changes a draw.
        penalised: whether some penalty is on.
        bias_ids, bias: [n] int64, [n] float32; `params.logit_bias`.
        allowed: [n] int64, the only tokens to choose from; empty for all.
        forbidden: [n] int64, every token that would end the text before `min_tokens`.
    """

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], seed: int | None, ends: Sequence[int]
    ) -> None:
        self.random = Random() if seed is None else Random(seed % 2**64)
        self.penalised = (
            params.repetition_penalty != 1.0
            or params.presence_penalty != 0.0
            or params.frequency_penalty != 0.0
        )
        self.bias_ids = torch.tensor(list(params.logit_bias), dtype=torch.int64)
        self.bias = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)
        self.allowed = torch.tensor(params.allowed_token_ids, dtype=torch.int64)
        self._bad_words = params.bad_words
        last = () if params.ignore_eos else ends
        self.forbidden = torch.tensor([*last, *params.stop_token_ids], dtype=torch.int64)
        self._min_tokens = params.min_tokens
        # Only the repetition penalty looks at the prompt.
        known = dict.fromkeys(prompt_ids) if params.repetition_penalty != 1.0 else {}
        self._places = {token: place for place, token in enumerate(known)}
        room = len(known) + params.max_tokens if self.penalised else 0
        self._ids = torch.empty(room, dtype=torch.int64)
        self._ids[: len(known)] = torch.tensor(list(known), dtype=torch.int64)
        self._counts = torch.zeros(room)
        self._followed = 0

    def may_end(self, output_ids: Sequence[int]) -> bool:
        """Whether the token after `output_ids` may end the text, as far as `min_tokens` is concerned."""
        return len(output_ids) >= self._min_tokens

    def adjusts(self, output_ids: Sequence[int]) -> bool:
        """Whether the logits after `output_ids` are not taken as they are."""
        return (
            self.penalised
            or len(self.bias_ids) > 0
            or len(self.allowed) > 0
            or len(self._bad_words) > 0
            or not self.may_end(output_ids)
        )

    def barred(self, output_ids: Sequence[int], *, held: bool) -> Tensor:
        """[n] int64, tokens that may not follow `output_ids`: where the text is `held` from its end, those
        that end it, and the last token of each bad word of which all others have just been chosen."""
        ends = [
            word[-1]
            for word in self._bad_words
            if len(word) - 1 <= len(output_ids)
            and word[:-1] == tuple(output_ids[len(output_ids) - len(word) + 1 :])
        ]
        early = self.forbidden if held else self.forbidden[:0]
        return torch.cat([early, torch.tensor(ends, dtype=torch.int64)]) if ends else early

    def seen(self, output_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What penalties are about.

        Args:
            output_ids: all tokens chosen so far; those of the last call come first.

        Returns:
            [n] int64, the distinct tokens of `output_ids` (and of the prompt, with a repetition penalty),
            and [n] float32, how often each is among `output_ids`.
        """
        for token in output_ids[self._followed :]:
            place = self._places.setdefault(token, len(self._places))
            self._ids[place] = token
            self._counts[place] += 1
        self._followed = len(output_ids)
        return self._ids[: len(self._places)], self._counts[: len(self._places)]


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
    def sample(self, logits: Tensor, rows: Sequence[Completion]) -> list[Sampled | BrainstacksError]:
        """Choose one token for each of `rows`, which stay as they are; only their `sampling_state` moves on.

        Args:
            logits: [R, V] float32, one row per completion; not changed.

        Returns:
            what was chosen; for a row whose logits are not finite, or whose grammar leaves nothing to choose,
            the error that its request ends with.
        """
        scores = adjust(constrain(logits, rows), rows)
        tokens = self._choose(scores, rows)
        stuck = _stuck(scores, tokens, rows)
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
            self._tokenizer, select(logits, asked), [chosen[i] for i in asked], list(tops.values())
        )
        entries = dict(zip(asked, found, strict=True))
        return [
            EngineFailure(NOT_FINITE)
            if not math.isfinite(logprob)
            else stuck.get(i) or Sampled(token, logprob, entries.get(i))
            for i, (token, logprob) in enumerate(zip(chosen, logprobs, strict=True))
        ]

    def _choose(self, scores: Tensor, rows: Sequence[Completion]) -> Tensor:
        """[R] int64."""
        drawn = [i for i, row in enumerate(rows) if row.request.sampling.temperature > 0.0]
        if not drawn:
            return _argmax(scores)
        draws = draw(
            select(scores, drawn),
            [rows[i].request.sampling for i in drawn],
            [rows[i].sampling_state.random.random() for i in drawn],
        )
        if len(drawn) == len(rows):
            return draws
        tokens = _argmax(scores)
        tokens[drawn] = draws
        return tokens


def constrain(logits: Tensor, rows: Sequence[Completion]) -> Tensor:
    """-inf for what the rows' grammars do not allow, before everything else: a penalty or a bias cannot bring
    it back, and top-k, top-p and min-p count what is allowed.

    Returns:
        [R, V] float32; `logits` itself where no row has a grammar.
    """
    masks = {at: row.matcher.mask() for at, row in enumerate(rows) if row.matcher is not None}
    if not masks:
        return logits
    where = torch.tensor(list(masks), device=logits.device)
    allowed = torch.stack(list(masks.values())).to(logits.device)
    constrained = logits.clone()
    constrained[where] = constrained[where].masked_fill(~allowed, float("-inf"))
    return constrained


def _stuck(scores: Tensor, tokens: Tensor, rows: Sequence[Completion]) -> dict[int, InvalidRequest]:
    """By row, the error where a grammar leaves nothing to choose: not even its token may be chosen."""
    matchers = {at: row.matcher for at, row in enumerate(rows) if row.matcher is not None}
    if not matchers:
        return {}
    held = list(matchers)
    chosen = select(scores, held).gather(-1, select(tokens, held)[:, None])[:, 0].tolist()
    return {
        at: matcher.dead_end()
        for (at, matcher), score in zip(matchers.items(), chosen, strict=True)
        if score == -math.inf
    }


def adjust(logits: Tensor, rows: Sequence[Completion]) -> Tensor:
    """Penalties, bias and forbidden tokens, in OpenAI's and vLLM's order.

    For a token seen in prompt or output: l > 0 ? l / repetition : l * repetition; then for one seen n times
    in the output: - n * frequency - (n > 0) * presence; then + bias; then -inf if it may not be chosen (now).

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
    for at, allowed in [(at, row.sampling_state.allowed) for at, row in todo]:
        if len(allowed):
            kept = adjusted[at, allowed.to(logits.device)]
            adjusted[at].fill_(float("-inf"))
            adjusted[at, allowed.to(logits.device)] = kept
    barred = [(at, row.sampling_state.barred(row.output_ids, held=_held(row))) for at, row in todo]
    flat[places(barred)] = float("-inf")
    return adjusted


def _held(row: Completion) -> bool:
    """Whether it may not end yet; where its grammar lets nothing else follow, it may."""
    if row.sampling_state.may_end(row.output_ids):
        return False
    if row.matcher is None:
        return True
    others = row.matcher.mask().clone()
    others[row.sampling_state.forbidden] = False
    return bool(others.any())


def _argmax(scores: Tensor) -> Tensor:
    """The first of the highest of each row, [R] int64."""
    if scores.device.type != "cpu":
        return scores.argmax(-1)
    # NumPy's is vectorised; torch's is not.
    return torch.from_numpy(scores.numpy().argmax(-1))
