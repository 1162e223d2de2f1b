"""One step on the device: rows in; out, what each completion gets whose known tokens are all computed now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.engine import output
from brainstacks.engine.block_manager import BlockManager
from brainstacks.engine.completion import Completion
from brainstacks.engine.interface import Tokenizer
from brainstacks.engine.runner import backend
from brainstacks.engine.runner.batch import build
from brainstacks.engine.runner.kv_cache import new_cache
from brainstacks.engine.sampling.sampler import Sampled, Sampler
from brainstacks.engine.scheduler import Row, Scheduler
from brainstacks.errors import BrainstacksError, EngineFailure
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks


@dataclass(frozen=True)
class Outcome:
    """What a forward gave a completion.

    Attributes:
        result: its next token; the error that ends its request; None where there is nothing to generate.
        scored: the log-probabilities of its prompt are complete with this.
    """

    completion: Completion
    result: Sampled | BrainstacksError | None
    scored: bool = False


class ModelRunner:
    """Runs the base over the paged cache, on the backend that fits it.

    Args:
        hooks: attached to `base`.
        tokenizer: for the texts of log-probabilities.
        others: of the engine.

    Raises:
        ConfigError: there is no room for the KV cache, or `config.backend` cannot compute this base.
    """

    def __init__(
        self,
        base: BaseModel,
        hooks: CompositionHooks,
        config: EngineConfig,
        tokenizer: Tokenizer | None,
        scheduler: Scheduler,
        blocks: BlockManager,
        sampler: Sampler,
    ) -> None:
        self.backend = backend.choose(base, hooks, new_cache(base, blocks.pool.size), config)
        self._tokenizer = tokenizer
        self._scheduler = scheduler
        self._blocks = blocks
        self._sampler = sampler
        self._decode_rows = config.max_batch_size if config.deterministic and self.backend.fixed_shapes else 0
        self._softcap = getattr(base.model.config.get_text_config(), "final_logit_softcapping", None)

    @torch.inference_mode()
    def run(self, rows: Sequence[Row], bank: StackBank) -> list[Outcome]:
        """Compute `rows` and store their keys and values; outcomes come with a request's first completion in
        front of those that share its prompt.
        """
        batch = build(rows, self._decode_rows)
        logits = self.backend.run(batch, bank)
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        outcomes: list[Outcome] = []
        chosen: list[tuple[Completion, int, bool]] = []
        at = 0
        for row, count in zip(batch.rows, batch.wanted_counts, strict=True):
            completion, at = row.completion, at + count
            completion.computed = row.start + row.count
            self._blocks.remember(completion)
            scored = False
            if completion.scores_prompt:
                try:
                    scored = self._score_prompt(row, logits[at - count : at])
                except EngineFailure as error:
                    outcomes.append(Outcome(completion, error))
                    continue
            if completion.pending == 0 and completion.request.sampling.max_tokens == 0:
                outcomes.append(Outcome(completion, None, scored))
            elif completion.pending == 0:
                chosen.append((completion, at - 1, scored))
                chosen += [(one, at - 1, False) for one in self._fork(completion)]
        if chosen:
            indices = [index for _, index, _ in chosen]
            together = logits if indices == list(range(len(logits))) else logits[indices]
            results = self._sampler.sample(together, [completion for completion, _, _ in chosen])
            outcomes += [
                Outcome(completion, result, scored)
                for (completion, _, scored), result in zip(chosen, results, strict=True)
            ]
        return outcomes

    @torch.inference_mode()
    def features(self, rows: Sequence[Row], mid_weight: float, last_weight: float) -> list[Tensor]:
        """Compute `rows` with the base alone and store their keys and values.

        Returns:
            the router's features of each row's tokens, [count, d] float32; see `routing.features`.
        """
        batch = build(rows)
        mid, last = self.backend.hidden_states(batch)
        packed = mid_weight * mid + last_weight * last
        found = dict(zip(batch.rows, packed.split([row.count for row in batch.rows]), strict=True))
        return [found[row] for row in rows]

    def _score_prompt(self, row: Row, logits: Tensor) -> bool:
        """Collect the prompt's log-probabilities from logits [count, V] of a part; whether it was the last.

        Raises:
            EngineFailure: they are not finite.
        """
        completion, request = row.completion, row.completion.request
        completion.prompt_logprobs += output.prompt_logprobs(
            self._tokenizer, request.prompt_ids, row.start, logits, request.sampling.prompt_logprobs or 0
        )
        completion.scores_prompt = completion.pending > 0
        return not completion.scores_prompt

    def _fork(self, leader: Completion) -> list[Completion]:
        """Completions that share the prompt that `leader` has computed just now; none at any other time."""
        if leader.output_ids or leader.request.n == 1:
            return []
        joined, copies = self._scheduler.fork(leader)
        self.backend.cache.copy(copies)
        return joined
