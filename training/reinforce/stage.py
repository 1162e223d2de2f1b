"""A stage on its way: a further round by another loss, whose snapshot is chosen by what it is to raise.

A stage is a round of its own, on top of the domain's others, and begins at zero deltas: the reference that
its losses need is then the very model without it, and what it did can be left out again, to the bit. It is
not frozen where it raised nothing, nor beyond `max_nll_rise`.

The steps, checkpoints and random numbers are those of a round (`training.rounds.training`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from brainstacks.layers.hooks import DeltaSource
from training.data.batches import Batch
from training.data.encoding import Example
from training.recipe.reinforcement import StageRecipe
from training.reinforce.items import Pair, Question
from training.rounds.allocator import return_freed_memory
from training.rounds.objective import response_logits
from training.rounds.task import RoundResult, RoundTask
from training.rounds.training import RoundState, RoundTraining
from training.rounds.workshop import Workshop

Figures = Mapping[str, float]
"""What is measured of a stage; `nll`, the domain's selection NLL, among it."""


@dataclass(frozen=True, kw_only=True)
class StageTask(RoundTask):
    """What a stage is to learn.

    Attributes:
        stage: which, and how.
        place: which of its domain's stages it is, from 0.
        items, held_out: to learn from, and to choose the snapshot by; `train` are the examples of `items`.
    """

    stage: StageRecipe
    place: int
    items: Sequence[Pair] | Sequence[Question]
    held_out: Sequence[Pair] | Sequence[Question]

    @property
    def title(self) -> str:
        return f"{self.domain}, {self.stage.method} {self.place + 1}"


@dataclass(frozen=True)
class StageResult(RoundResult):
    """Outcome of a stage; `baseline` and `best` are the selection NLL before it and at the snapshot.

    Attributes:
        method: which it was.
        before, after: its figures at zero deltas and at the snapshot; the same where there is none.
        effects: domain -> validation NLL (nats per token) without and with it, on top of all that is frozen.
    """

    method: str = ""
    before: Figures = field(default_factory=dict)
    after: Figures = field(default_factory=dict)
    effects: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def told(self, title: str) -> list[str]:
        """Lines for people."""
        changes = ", ".join(
            f"{name} {self.before[name]:.4f} -> {self.after[name]:.4f}" for name in self.after
        )
        if self.tensors is None:
            figures = ", ".join(f"{name} {value:.4f}" for name, value in self.before.items())
            return [f"{title}: {figures}; nothing gained, so not frozen; {self.stopped}"]
        effects = ", ".join(f"{d} {before:.4f} -> {after:.4f}" for d, (before, after) in self.effects.items())
        return [f"{title}: {changes}; {self.stopped}", f"{title}: validation {effects} nats"]


@dataclass
class StageState(RoundState):
    """`baseline` and `best` are of the selection NLL."""

    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)


class StageTraining(RoundTraining, ABC):
    """A stage on its way, in one process (`items.load_stages` sees to that)."""

    state_class = StageState
    state: StageState
    task: StageTask

    def __init__(self, workshop: Workshop, task: StageTask) -> None:
        super().__init__(workshop, task)
        self.step_figures: dict[str, float] = {}

    # --- what a method decides --------------------------------------------------------------------

    @abstractmethod
    def prepare(self) -> None:
        """Compute, at zero deltas, what is needed throughout; into `kept`."""

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """What is measured on the items held out."""

    @abstractmethod
    def rank(self, figures: Figures) -> tuple[float, ...]:
        """The score, a share, and what decides between equal ones; the higher, the better."""

    # --- begin, evaluate, end ---------------------------------------------------------------------

    def begin(self) -> None:
        """Measure the model without the stage, which is the reference."""
        self.prepare()
        before = self._measured()
        self.state = StageState(baseline=before["nll"], best=before["nll"], before=before, after=before)
        self.log("reinforce-baseline", None, **before)

    def evaluate(self) -> None:
        """Take a snapshot where the score rose; stop where the NLL did, on a plateau or at the end."""
        state, stage = self.state, self.task.stage
        found = self._measured()
        return_freed_memory()
        state.history.append(
            {"step": state.step, "train_loss": sum(state.window) / len(state.window), **found}
        )
        state.window = []
        self.log("reinforce-evaluation", None, **found)
        spiked = not found["nll"] <= state.baseline + stage.max_nll_rise
        if not spiked and self._better(found):
            state.best, state.after, state.stale = found["nll"], found, 0
            self.snapshot = {name: tensor.cpu() for name, tensor in self.active.export().items()}
        else:
            state.stale += 1
        if state.stopped is not None:
            return
        if spiked:
            state.stopped = f"the selection loss rose by more than {stage.max_nll_rise:g} nats"
        elif state.stale >= self.config.patience:
            state.stopped = f"no improvement in {self.config.patience} evaluations"
        elif state.step >= self.config.steps:
            state.stopped = "all steps done"

    def _better(self, found: Figures) -> bool:
        rank = self.rank(found)
        gained = rank[0] - self.rank(self.state.before)[0]
        return (
            all(map(math.isfinite, rank))
            and gained > 0
            and gained >= self.task.stage.min_gain
            and rank > self.rank(self.state.after)
        )

    def _measured(self) -> dict[str, float]:
        self.active.eval()
        return {**self.figures(), "nll": self.selection_nll()}

    def result(self) -> StageResult:
        state = self.state
        return StageResult(
            self.snapshot or None,
            state.baseline,
            state.best,
            state.stopped or "",
            state.history,
            self.task.stage.method,
            state.before,
            state.after,
        )

    def log_step(self, loss: float, tokens: int, seconds: float) -> None:
        timing = {"seconds": seconds, "tokens_per_second": tokens / seconds}
        rate = self.learning_rate
        self.log(
            "reinforce-step", timing, objective=loss, learning_rate=rate, tokens=tokens, **self.step_figures
        )

    # --- compositions -----------------------------------------------------------------------------

    def sources(self, examples: Sequence[Example], active: bool = True) -> Sequence[DeltaSource]:
        """What composes a batch of these: an item meets the same earlier stacks throughout the stage, or the
        reference would be another model at every step."""
        earlier = self.task.earlier.of([e.id for e in examples])
        return (*earlier, *self.task.own, *([self.active] if active else []))

    def composed(self, examples: Sequence[Example], batch: Batch, active: bool = True) -> Any:
        sources = self.sources(examples, active)
        return self.workshop.hooks.composed(*sources, responses=batch.responses)

    def acting(self, examples: Sequence[Example]) -> int:
        """Tokens of `examples` that the deltas act on: what a step's balance loss is a mean over."""
        everywhere = self.task.stack.applies == "everywhere"
        return sum(len(e) if everywhere else len(e.response) for e in examples)

    def logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """[M] log-probabilities of the labels of `batch`, row by row, in order, under what composes it."""
        logits = response_logits(self.workshop.base.model, batch) / temperature
        labels = batch.labels.flatten()[batch.labelled]
        return logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
