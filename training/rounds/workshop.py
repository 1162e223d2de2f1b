"""What every round of a run trains with, in one process or in several that keep step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, broadcast
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.errors import ConfigError
from brainstacks.layers.hooks import CompositionHooks
from training.rounds.device import take_device
from training.runs.log import Log
from training.runs.signals import Interrupted, StopRequest


def make_accelerator(device: str = "auto") -> Accelerator:
    """An accelerator for this process; what a launcher's environment asks of precision or accumulation is
    not its to decide: the recipe does.

    Args:
        device: auto, cpu, cuda, or, of a process that is alone, cuda:N.

    Raises:
        ConfigError: as `take_device`; or several processes would share one GPU.
    """
    taken = take_device(device)
    once = GradientAccumulationPlugin(num_steps=1)
    cpu = taken.type == "cpu"
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", gradient_accumulation_plugin=once)
    if taken.index is not None and accelerator.num_processes > 1:
        raise ConfigError(
            f"device is {device}, and each of the {accelerator.num_processes} processes takes a GPU of its "
            "own; leave --device out"
        )
    return accelerator


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

    def summed(self, *values: Tensor | float) -> list[float]:
        """Of each value (a scalar, float64 where it is a tensor) the sum over all processes, read at once.

        All of them ask for it together, and end up with the same.
        """
        found: list[float] = self.accelerator.reduce(torch.stack([*map(self._tensor, values)])).tolist()
        return found

    def of_first(self, value: float) -> float:
        """The first process's `value`."""
        return float(broadcast(self._tensor(value)))

    def stop_here_if_asked(self, where: str) -> None:
        """Raises Interrupted: a stop was asked for, of any process, and `where` is a place to go on from."""
        if self.summed(self.stop.requested)[0] > 0:
            raise Interrupted(f"stopped {where}")

    def _tensor(self, value: Tensor | float) -> Tensor:
        if isinstance(value, Tensor):
            return value
        # Filled there: a copy from the host would be waited for.
        return torch.full((), float(value), dtype=torch.float64, device=self.accelerator.device)
