"""Steps of an optimiser on one batch, as in training: of a round on frozen stacks, or of a peer's adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter

import torch
from torch import Tensor, nn

from benchmarks.instruments.random_stacks import B_STD
from brainstacks.base_model import BaseModel
from brainstacks.config import StackConfig
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.packed_stack import StackTensors
from training.data.batches import collate
from training.data.encoding import Example
from training.recipe.settings import RoundConfig, StackRecipe
from training.rounds.active_stack import ActiveStack
from training.rounds.objective import response_nll
from training.rounds.optimizer import make_optimizer

Step = Callable[[], None]


class OptimizerSteps:
    """Args:
    base: open to gradients.
    rows: token ids, of one length; the second half of each is the response.

    Attributes:
        batch: of these rows, on the base's device.
    """

    def __init__(self, base: BaseModel, rows: Sequence[Sequence[int]], seed: int) -> None:
        self._base = base
        self._seed = seed
        self._hooks = CompositionHooks(base.sites)
        self._hooks.attach()
        half = len(rows[0]) // 2
        examples = [Example(str(i), tuple(row[:half]), tuple(row[half:])) for i, row in enumerate(rows)]
        self.batch = collate(examples).to(base.device)

    def on_frozen(self, stack: StackRecipe, frozen: int) -> Step:
        """A step as in `training.rounds.inner_loop`, on top of so many random frozen stacks."""
        base, config = self._base, stack.config(self._base.identity.layers)
        torch.manual_seed(self._seed)
        bank = StackBank(base.device, base.dtype)
        for number in range(frozen):
            bank.add(number, _random_stack(config, base))
        sources = [bank.bind([dict.fromkeys(range(frozen), 1.0)])] if frozen else []
        active = ActiveStack(config, base.identity.dims).to(base.device).train()
        batch, settings = self.batch, RoundConfig()

        def composed() -> AbstractContextManager[None]:
            return self._hooks.composed(*sources, active)

        def loss() -> Tensor:
            active.begin(batch.segments, batch.responses, batch.examples)
            nll = response_nll(base.model, batch).mean()
            tokens = batch.attention_mask.sum()
            return nll + settings.balance_coefficient * active.balance_sum() / tokens

        return self.of(active, loss, composed)

    def of(
        self,
        adapter: nn.Module,
        loss: Callable[[], Tensor],
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Step:
        """Forward, backward, clip, step of what `adapter` can train.

        Args:
            around: forward and backward, as recomputed layers run again there.
        """
        settings = RoundConfig()
        trainable = [p for p in adapter.parameters() if p.requires_grad]
        optimizer = make_optimizer(trainable, settings, self._base.device)

        def step() -> None:
            with around():
                loss().backward()
            nn.utils.clip_grad_norm_(trainable, settings.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def timed(self, step: Step) -> float:
        """Seconds of one step."""
        self._settle()
        start = perf_counter()
        step()
        self._settle()
        return perf_counter() - start

    def _settle(self) -> None:
        if self._base.device.type == "cuda":
            torch.cuda.synchronize()


def _random_stack(config: StackConfig, base: BaseModel) -> StackTensors:
    active = ActiveStack(config, base.identity.dims, noise=False)
    with torch.no_grad():
        for up in active.up.values():
            up.normal_(std=B_STD)
    return StackTensors(config, 1, {f"rounds.0.{name}": t for name, t in active.export().items()})
