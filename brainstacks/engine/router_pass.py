"""The meta-router's look at waiting prompts, which is also their prefill where no stack is applied."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.engine.block_manager import BlockManager
from brainstacks.engine.completion import Completion
from brainstacks.engine.model_runner import ModelRunner
from brainstacks.engine.request import GenerationRequest, SamplingParams
from brainstacks.engine.scheduler import Row
from brainstacks.routing.router import Router


class RouterPass:
    """Computes the prompts' first tokens with the base alone and leaves their keys and values in the prefix
    cache. There a base-only request finds them; for one that is composed they only cost what they must.

    Args:
        blocks, runner: of the engine.
    """

    def __init__(
        self, base: BaseModel, config: EngineConfig, blocks: BlockManager, runner: ModelRunner
    ) -> None:
        self._base = base
        self._config = config
        self._blocks = blocks
        self._runner = runner

    def run(self, router: Router, prompts: Sequence[Sequence[int]]) -> tuple[list[dict[str, float]], float]:
        """What `router` makes of each of `prompts`, one or more, and the milliseconds that it took."""
        started = perf_counter()
        if self._config.deterministic:  # each alone, so that no other decides the shape of what is computed
            found = [router.probabilities(self._base, [prompt])[0] for prompt in prompts]
        else:
            found = self._kept(router, prompts) or router.probabilities(self._base, prompts)
        return found, 1000 * (perf_counter() - started)

    def _kept(self, router: Router, prompts: Sequence[Sequence[int]]) -> list[dict[str, float]] | None:
        """With keys and values stored; None where they are not kept, or there is no room for them."""
        if not self._blocks.prefix_caching:
            return None
        config = router.config
        completions = [_reading(prompt[: config.sequence_length]) for prompt in prompts]
        try:
            if not all(self._blocks.admit(completion, 0, reuse=False) for completion in completions):
                return None
            rows = [Row(completion, 0, completion.length) for completion in completions]
            features = self._runner.features(rows, config.mid_weight, config.last_weight)
            for completion in completions:
                completion.computed = completion.length
                self._blocks.remember(completion)
        finally:
            for completion in completions:
                self._blocks.release(completion)
        return router.from_features(features)


def _reading(prompt_ids: Sequence[int]) -> Completion:
    """A base-only completion that generates nothing."""
    return Completion(GenerationRequest("", tuple(prompt_ids), SamplingParams(max_tokens=0)), 0, None, None)
