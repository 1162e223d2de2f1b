"""A step that the device has been given, until the host has what it gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from brainstacks.engine import output
from brainstacks.engine.completion import Completion
from brainstacks.engine.interface import Tokenizer
from brainstacks.engine.sampling.sampler import Sampled, Started
from brainstacks.engine.sampling.transfers import Mark
from brainstacks.engine.scheduler import Row
from brainstacks.errors import BrainstacksError, EngineFailure


class Outcome(NamedTuple):
    """What a forward gave a completion.

    Attributes:
        result: its next token; the error that ends its request; None where there is nothing to generate.
        scored: the log-probabilities of its prompt are complete with this.
    """

    completion: Completion
    result: Sampled | BrainstacksError | None
    scored: bool = False


class Flight:
    """Made when the device has been given all of a step.

    Args:
        tokenizer: for the texts of log-probabilities.
        rows: of the step.
        scoring: those whose prompt's log-probabilities are wanted, and their logits [count, V].
        done: completions whose prompt is computed now, and that generate nothing.
        chosen: completions that get a token, a request's first in front of those that share its prompt.
        started: their tokens.
        computed: the end of the step, where nobody gets a token too.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        rows: Sequence[Row],
        scoring: Sequence[tuple[Row, Tensor]],
        done: Sequence[Completion],
        chosen: Sequence[Completion],
        started: Started | None,
        computed: Mark,
    ) -> None:
        self.rows = rows
        self._tokenizer = tokenizer
        self._scoring, self._done = scoring, done
        self._chosen, self._started = chosen, started
        self._computed = computed

    @torch.inference_mode()
    def land(self) -> list[Outcome]:
        """Wait for the device; what its completions get, a request's first in front of the others."""
        self._computed.wait()
        failed: list[Outcome] = []
        scored: set[Completion] = set()
        for row, logits in self._scoring:
            try:
                if self._score(row, logits):
                    scored.add(row.completion)
            except EngineFailure as error:
                failed.append(Outcome(row.completion, error))
        results = self._started.finish() if self._started is not None else []
        gets = [*((one, None) for one in self._done), *zip(self._chosen, results, strict=True)]
        return failed + [Outcome(one, result, one in scored) for one, result in gets]

    def _score(self, row: Row, logits: Tensor) -> bool:
        """Collect the prompt's log-probabilities from a part's logits; whether it was the last.

        Raises:
            EngineFailure: they are not finite.
        """
        completion, request = row.completion, row.completion.request
        completion.prompt_logprobs += output.prompt_logprobs(
            self._tokenizer, request.prompt_ids, row.start, logits, request.sampling.prompt_logprobs or 0
        )
        completion.scores_prompt = completion.pending > 0
        return not completion.scores_prompt
