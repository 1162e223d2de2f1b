"""One forward of some rows, and what it gives each sequence whose known tokens are all computed with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from brainstacks.engine import output
from brainstacks.engine.block_manager import BlockManager
from brainstacks.engine.interface import Tokenizer
from brainstacks.engine.model_runner import ModelRunner
from brainstacks.engine.sampler import Sampled, Sampler
from brainstacks.engine.scheduler import Row, Scheduler
from brainstacks.engine.sequence import Sequence as Running
from brainstacks.errors import EngineFailure
from brainstacks.layers.bank import StackBank


@dataclass(frozen=True)
class Outcome:
    """What a forward gave a sequence.

    Attributes:
        result: its next token; the error that ends its request; None where there is nothing to generate.
        scored: the log-probabilities of its prompt are complete with this.
    """

    sequence: Running
    result: Sampled | EngineFailure | None
    scored: bool = False


class Forward:
    """Args:
    tokenizer: for the texts of log-probabilities.
    others: of the engine.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        scheduler: Scheduler,
        blocks: BlockManager,
        runner: ModelRunner,
        sampler: Sampler,
    ) -> None:
        self._tokenizer = tokenizer
        self._scheduler = scheduler
        self._blocks = blocks
        self._runner = runner
        self._sampler = sampler

    def run(self, rows: Sequence[Row], bank: StackBank) -> list[Outcome]:
        """Outcomes come with a request's first completion in front of those that share its prompt."""
        batch, logits = self._runner.run(rows, bank)
        outcomes: list[Outcome] = []
        chosen: list[tuple[Running, int, bool]] = []
        at = 0
        for row, count in zip(batch.rows, batch.wanted_counts, strict=True):
            sequence, at = row.sequence, at + count
            sequence.computed = row.start + row.count
            self._blocks.remember(sequence)
            scored = False
            if sequence.scores_prompt:
                try:
                    scored = self._score_prompt(row, logits[at - count : at])
                except EngineFailure as error:
                    outcomes.append(Outcome(sequence, error))
                    continue
            if sequence.pending == 0 and sequence.request.sampling.max_tokens == 0:
                outcomes.append(Outcome(sequence, None, scored))
            elif sequence.pending == 0:
                chosen.append((sequence, at - 1, scored))
                chosen += [(one, at - 1, False) for one in self._fork(sequence)]
        if chosen:
            indices = [index for _, index, _ in chosen]
            together = logits if indices == list(range(len(logits))) else logits[indices]
            results = self._sampler.sample(together, [sequence for sequence, _, _ in chosen])
            outcomes += [
                Outcome(sequence, result, scored)
                for (sequence, _, scored), result in zip(chosen, results, strict=True)
            ]
        return outcomes

    def _score_prompt(self, row: Row, logits: Tensor) -> bool:
        """Collect the prompt's log-probabilities from logits [count, V] of a part; whether it was the last.

        Raises:
            EngineFailure: they are not finite.
        """
        sequence, request = row.sequence, row.sequence.request
        sequence.prompt_logprobs += output.prompt_logprobs(
            self._tokenizer, request.prompt_ids, row.start, logits, request.sampling.prompt_logprobs or 0
        )
        sequence.scores_prompt = sequence.pending > 0
        return not sequence.scores_prompt

    def _fork(self, leader: Running) -> list[Running]:
        """Completions that share the prompt that `leader` has computed just now; none at any other time."""
        if leader.output_ids or leader.request.n == 1:
            return []
        joined, copies = self._scheduler.fork(leader)
        self._runner.cache.copy(copies)
        return joined
