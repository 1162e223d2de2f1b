"""What a training of the experiments gave, and what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainstacks.layers.packed_stack import StackTensors
from training.runs.log import TIMING
from training.runs.stored import read_lines


@dataclass(frozen=True)
class Trained:
    """What a training gave.

    Attributes:
        stack: the best snapshot; what it started from, where no evaluation improved on that.
        history: step, train_loss and val_loss (selection NLL, nats per token), the start first.
        seconds: of its steps, without evaluations.
        tokens: that its steps saw (count).
        directions: the facts of its null space; None without one.
    """

    stack: StackTensors
    history: Sequence[Mapping[str, float]]
    seconds: float
    tokens: int
    directions: Mapping[str, Any] | None

    @property
    def losses(self) -> list[float]:
        """Selection NLL at each evaluation, the start first."""
        return [point["val_loss"] for point in self.history]

    @property
    def gain(self) -> float:
        """Nats by which it lowered the selection NLL, in the composition that it trained in."""
        return self.losses[0] - min(self.losses)


def step_totals(metrics: Path) -> dict[str, float]:
    """Seconds and tokens of all steps of a training, those before it was resumed included."""
    steps = [line for line in read_lines(metrics) if line["kind"] == "step"]
    return {
        "seconds": sum(line[TIMING]["seconds"] for line in steps),
        "tokens": sum(line["tokens"] for line in steps),
    }
