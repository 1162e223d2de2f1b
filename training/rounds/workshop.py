"""What every round of a run trains with, in one process or in several that keep step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, broadcast

from brainstacks.base_model import BaseModel
from brainstacks.layers.hooks import CompositionHooks
from training.runs.log import Log
from training.runs.signals import Interrupted, StopRequest


def make_accelerator() -> Accelerator:
    """An accelerator for this process; what a launcher's environment asks of precision or accumulation is
    not its to decide: the recipe does."""
    once = GradientAccumulationPlugin(num_steps=1)
    cpu = not torch.cuda.is_available()
    return Accelerator(cpu=cpu, mixed_precision="no", gradient_accumulation_plugin=once)


@dataclass(frozen=True)
class Workshop:
    """The base, and what steps on it need.

    Attributes:
        accelerator: of this process.
        base: open to gradients.
        hooks: attached to it.
        log: of the run; in processes beside the main one it keeps nothing.
        stop: looked at once in every step.
    """

    accelerator: Accelerator
    base: BaseModel
    hooks: CompositionHooks
    log: Log
    stop: StopRequest

    def summed(self, value: float) -> float:
        """The sum of `value` over all processes."""
        return float(self.accelerator.reduce(self._tensor(value)))

    def of_first(self, value: float) -> float:
        """The first process's `value`."""
        return float(broadcast(self._tensor(value)))

    def asked_to_stop(self) -> bool:
        """Whether any process was: a signal reaches one before the other, and they stop together."""
        return self.summed(float(self.stop.requested)) > 0

    def stop_here_if_asked(self, where: str) -> None:
        """Raises Interrupted: a stop was asked for, and `where` is a place to go on from."""
        if self.asked_to_stop():
            raise Interrupted(f"stopped {where}")

    def _tensor(self, value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
