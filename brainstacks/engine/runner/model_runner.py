"""A step's way to the device: rows in; out, the flight that brings back what their completions get."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.engine.block_manager import BlockManager
from brainstacks.engine.completion import Completion
from brainstacks.engine.interface import Tokenizer
from brainstacks.engine.runner import backend
from brainstacks.engine.runner.batch import StepBatch, build, lay_out
from brainstacks.engine.runner.flight import Flight
from brainstacks.engine.runner.kv_cache import new_cache
from brainstacks.engine.sampling.sampler import Sampler
from brainstacks.engine.sampling.transfers import Mark, select
from brainstacks.engine.scheduler import Row, Scheduler
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks


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
        self._foreseen: tuple[Sequence[Row], StepBatch] | None = None
        self._softcap = getattr(base.model.config.get_text_config(), "final_logit_softcapping", None)

    def foresee(self, bank: StackBank) -> None:
        """While the device computes a step, make the next ready but for its ids, as if everybody went on."""
        self._foreseen = None
        rows = self._scheduler.foresee()
        if rows:
            batch = lay_out(rows, self._decode_rows)
            self.backend.lay_out(batch, bank)
            self._foreseen = rows, batch

    @torch.inference_mode()
    def launch(self, rows: Sequence[Row], bank: StackBank) -> Flight:
        """Have the device compute `rows`, store their keys and values, and choose tokens. All that the
        completions need for it to go on without them is done; an asynchronous backend is not waited for.
        """
        batch = self._batch(rows)
        logits = self.backend.run(batch, bank)
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        scoring: list[tuple[Row, Tensor]] = []
        done: list[Completion] = []
        chosen: list[Completion] = []
        indices: list[int] = []
        at = 0
        for row, count in zip(batch.rows, batch.wanted_counts, strict=True):
            completion, at = row.completion, at + count
            completion.computed = row.start + row.count
            self._blocks.remember(completion)
            if completion.scores_prompt:
                scoring.append((row, logits[at - count : at]))
            if completion.pending == 0 and completion.request.sampling.max_tokens == 0:
                done.append(completion)
            elif completion.pending == 0:
                together = [completion, *self._fork(completion)]
                chosen += together
                indices += [at - 1] * len(together)
        started = (
            self._sampler.start(select(logits, indices), chosen, wait=not self.backend.asynchronous)
            if chosen
            else None
        )
        return Flight(self._tokenizer, batch.rows, scoring, done, chosen, started, Mark(logits.device))

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

    def _batch(self, rows: Sequence[Row]) -> StepBatch:
        """Of `rows`; the one that was laid out where they are those that were foreseen."""
        foreseen, self._foreseen = self._foreseen, None
        if foreseen is None or list(foreseen[0]) != list(rows):
            return build(rows, self._decode_rows)
        # Only tokens have landed since: whoever still decodes has the blocks that it had.
        batch = foreseen[1]
        batch.read_ids()
        return batch

    def _fork(self, leader: Completion) -> list[Completion]:
        """Completions that share the prompt that `leader` has computed just now; none at any other time."""
        if leader.output_ids or leader.request.n == 1:
            return []
        joined, copies = self._scheduler.fork(leader)
        self.backend.cache.copy(copies)
        return joined
