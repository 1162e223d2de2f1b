"""Logits -> the next token of each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from brainstacks.engine.completion import Completion
from brainstacks.engine.interface import Tokenizer
from brainstacks.engine.request import SamplingParams, TokenLogprob
from brainstacks.engine.sampling.adjust import adjust, constrain
from brainstacks.engine.sampling.draw import choose
from brainstacks.engine.sampling.logprobs import NOT_FINITE, token_logprobs
from brainstacks.engine.sampling.state import SamplingState
from brainstacks.engine.sampling.transfers import HostCopy, select
from brainstacks.errors import BrainstacksError, EngineFailure


class Sampled(NamedTuple):
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
    def start(self, logits: Tensor, rows: Sequence[Completion], *, wait: bool) -> Started:
        """Choose one token for each of `rows`, which stay as they are; only their `sampling_state` moves on.

        Args:
            logits: [R, V] float32, one row per completion; not changed, and to stay so until `finish`.
            wait: for what the device computes, which costs nothing where it is the CPU; otherwise only
                `finish` does.
        """
        return Started(self._tokenizer, logits, adjust(constrain(logits, rows), rows), rows, wait=wait)


class _Choice(NamedTuple):
    """A row's token, its log-probability, its score, and whether it is settled: see `draw.choose`."""

    token: float
    logprob: float
    score: float = math.inf
    settled: float = True


class Started:
    """Tokens that are being chosen.

    Args:
        tokenizer: for the texts of log-probabilities.
        logits, scores: [R, V] float32, before and after all that changes them.
        rows: the completions that they belong to.
        wait: see `Sampler.start`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        logits: Tensor,
        scores: Tensor,
        rows: Sequence[Completion],
        *,
        wait: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._logits, self._scores, self._rows = logits, scores, rows
        self._params = [row.request.sampling for row in rows]
        self._uniforms = [
            row.sampling_state.random.random() if params.temperature > 0.0 else 0.0
            for row, params in zip(rows, self._params, strict=True)
        ]
        self._chosen = HostCopy(self._choose(range(len(rows)), wait=wait))

    @torch.inference_mode()
    def finish(self) -> list[Sampled | BrainstacksError]:
        """Wait for the tokens.

        Returns:
            what was chosen; for a row whose logits are not finite, or whose grammar leaves nothing to choose,
            the error that its request ends with.
        """
        found = self._settled()
        entries = self._entries(found)
        return [
            EngineFailure(NOT_FINITE)
            if not math.isfinite(one.logprob)
            else row.matcher.dead_end()
            if row.matcher is not None and one.score == -math.inf  # not even its token may be chosen
            else Sampled(int(one.token), one.logprob, entries.get(i))
            for i, (row, one) in enumerate(zip(self._rows, found, strict=True))
        ]

    def _settled(self) -> list[_Choice]:
        """Of each row."""
        found = [_Choice(*values) for values in self._chosen.wait().tolist()]
        open_rows = [i for i, one in enumerate(found) if not one.settled]
        if open_rows:
            for i, values in zip(open_rows, self._choose(open_rows, wait=True).tolist(), strict=True):
                found[i] = _Choice(*values)
        return found

    def _choose(self, rows: Sequence[int], *, wait: bool) -> Tensor:
        """[R, 2..4] float64 of these rows, to be copied at once: the fields of `_Choice` that are needed."""
        logits, scores = select(self._logits, rows), select(self._scores, rows)
        tokens, settled = choose(
            scores, [self._params[i] for i in rows], [self._uniforms[i] for i in rows], wait=wait
        )
        own = tokens[:, None]
        # Of all rows: on a CPU log_softmax is faster than logsumexp.
        columns = [own.double(), logits.log_softmax(-1).gather(-1, own)]
        if settled is not None or any(row.matcher is not None for row in self._rows):
            columns.append(scores.gather(-1, own))
        if settled is not None:
            columns.append(settled[:, None])
        return torch.cat(columns, dim=-1)

    def _entries(self, found: Sequence[_Choice]) -> dict[int, TokenLogprob]:
        """By row, for those that asked."""
        tops = {
            i: params.logprobs
            for i, (params, one) in enumerate(zip(self._params, found, strict=True))
            if params.logprobs is not None and math.isfinite(one.logprob)
        }
        if not tops:
            return {}
        asked = list(tops)
        tokens = [int(found[i].token) for i in asked]
        entries = token_logprobs(self._tokenizer, select(self._logits, asked), tokens, list(tops.values()))
        return dict(zip(asked, entries, strict=True))
