"""What one round is to learn, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from brainstacks.config import StackConfig
from brainstacks.layers.hooks import DeltaSource
from training.data.encoding import Example
from training.recipe.settings import DataRecipe, RoundConfig
from training.rounds.active_stack import ActiveStack
from training.rounds.earlier_stacks import EarlierStacks
from training.rounds.gating import PUBLISHED, Gating
from training.rounds.null_space import NullSpace

Penalty = Callable[[ActiveStack], Tensor]
"""A further term of the loss, of the weights alone."""


@dataclass(frozen=True)
class RoundTask:
    """What one round is to learn.

    Attributes:
        domain, number: which round this is, for the log; `number` counts from 0.
        stack: shape of the round.
        train, selection: examples to train on, and to choose the snapshot with.
        earlier: what the stacks of earlier domains do meanwhile.
        own: the domain's own frozen rounds, on at 1.0.
        null_space: where the round must not write, or read.
        initial: weights to start from, as `ActiveStack.export` gives them; None for zero deltas.
        penalty: added to the loss of every step.
        gating: how the gates begin, and what they become.
    """

    domain: str
    number: int
    stack: StackConfig
    train: Sequence[Example]
    selection: Sequence[Example]
    data: DataRecipe
    config: RoundConfig
    earlier: EarlierStacks
    own: Sequence[DeltaSource] = ()
    null_space: NullSpace | None = None
    initial: Mapping[str, Tensor] | None = None
    penalty: Penalty | None = None
    gating: Gating = PUBLISHED

    @property
    def title(self) -> str:
        return f"{self.domain}, round {self.number + 1}"


@dataclass(frozen=True)
class RoundResult:
    """Outcome of one round.

    Attributes:
        tensors: the best snapshot as `ActiveStack.export` gives it; None when no evaluation beat the
            zero-delta baseline, and nothing may be frozen.
        baseline, best: selection NLL (nats per token) before the round and at the snapshot.
        stopped: why the round ended.
        history: one dict per evaluation: step, train_loss, val_loss.
    """

    tensors: Mapping[str, Tensor] | None
    baseline: float
    best: float
    stopped: str
    history: Sequence[Mapping[str, float]] = ()
