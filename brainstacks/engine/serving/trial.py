"""Whether a stack or a router computes at all: a short prompt with it alone, before anybody gets it; and
whether the device still does.

The engine's own backend computes it, between two steps and on the engine's thread, so the very kernels are
tried that requests would meet. Keys and values go to the block that is there for padding: no request's memory
is touched, and a trial never waits for any.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence

import torch

from brainstacks.base_model import BaseModel
from brainstacks.engine.block_manager import BLOCK_TOKENS, SCRATCH
from brainstacks.engine.completion import Completion
from brainstacks.engine.request import GenerationRequest, SamplingParams
from brainstacks.engine.runner.backend import Backend
from brainstacks.engine.runner.batch import StepBatch, build
from brainstacks.engine.scheduler import Row
from brainstacks.errors import EngineFailure, InvalidArtifact
from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import PackedStack
from brainstacks.routing.router import Router, not_finite

CANARY = "The quick brown fox jumps over 2 lazy dogs."
"""What is computed: its first tokens, as many as a block holds."""

BetweenSteps = Callable[[Callable[[], None]], None]
"""Runs something on the engine's thread while no step runs, waits for it, and raises what it raises."""


class Trial:
    """Args:
    base, backend: what computes.
    prompt: token ids, one or more; at most `BLOCK_TOKENS` of them are used.
    between_steps: the way to the engine's thread.
    """

    def __init__(
        self, base: BaseModel, backend: Backend, prompt: Sequence[int], between_steps: BetweenSteps
    ) -> None:
        self._base = base
        self._backend = backend
        self._prompt = tuple(prompt[:BLOCK_TOKENS])
        self._between_steps = between_steps

    def base(self) -> None:
        """Compute with the base alone; on the engine's thread. Raises what a device that fails raises, and
        EngineFailure for numbers that cannot be."""
        if not self._sound(StackBank(self._base.device, self._base.dtype), {}):
            raise EngineFailure("the base was tried alone on a short prompt, and its logits are not finite")

    def stack(self, stack: PackedStack) -> None:
        """Compute with `stack` alone at weight 1.0; it is on the device, as `StackBank.place` gives it.

        Raises:
            InvalidArtifact: numbers overflow: logits are not finite, or all alike.
        """
        bank = StackBank(self._base.device, self._base.dtype)
        bank.put(CANARY, stack)
        self._between_steps(lambda: self._try_stack(bank))

    def router(self, router: Router) -> None:
        """Route with `router`. Raises InvalidArtifact: a probability is not finite."""
        self._between_steps(lambda: self._try_router(router))

    def _try_stack(self, bank: StackBank) -> None:
        if not self._sound(bank, {CANARY: 1.0}):
            raise InvalidArtifact(
                "the stack was tried alone at weight 1.0, and numbers overflow: its weights or its alpha are "
                "too large for this base; train it again with a smaller learning rate or alpha"
            )

    @torch.inference_mode()
    def _sound(self, bank: StackBank, weights: dict[str, float]) -> bool:
        """Whether the logits under `weights` are finite, and not all alike."""
        logits = self._backend.run(self._batch(weights), bank)
        # A norm whose square overflows gives zeros, so that all tokens are equally likely.
        return bool(logits.isfinite().all() and (logits.amax(-1) > logits.amin(-1)).all())

    @torch.inference_mode()
    def _try_router(self, router: Router) -> None:
        mid, last = self._backend.hidden_states(self._batch({}))
        config = router.config
        (found,) = router.from_features([config.mid_weight * mid + config.last_weight * last])
        if not all(map(math.isfinite, found.values())):
            raise InvalidArtifact(
                f"{not_finite(found)} when it was tried: its weights are too large; train it again, or take "
                "another one"
            )

    def _batch(self, weights: dict[str, float]) -> StepBatch:
        request = GenerationRequest("", self._prompt, SamplingParams(max_tokens=1))
        completion = Completion(request, 0, None, None, weights=weights, blocks=array("i", [SCRATCH]))
        completion.scores_prompt = True  # the logits of every token are looked at
        return build([Row(completion, 0, len(self._prompt))])
