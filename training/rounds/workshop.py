"""What every round of a run trains with, in one process or in several that keep step."""

from __future__ import annotations

from dataclasses import dataclass

from brainstacks.base_model import BaseModel
from brainstacks.layers.hooks import CompositionHooks
from training.runs.log import Log
from training.runs.processes import Processes
from training.runs.signals import Interrupted, StopRequest


@dataclass(frozen=True)
class Workshop:
    """The base, and what steps on it need.

    Attributes:
        processes: that train, of which this is one.
        base: open to gradients.
        hooks: attached to it.
        log: of the run; in processes beside the first it keeps nothing.
        stop: looked at once in every step.
    """

    processes: Processes
    base: BaseModel
    hooks: CompositionHooks
    log: Log
    stop: StopRequest

    def stop_here_if_asked(self, where: str) -> None:
        """Raises Interrupted: a stop was asked for, of any process, and `where` is a place to go on from."""
        if self.processes.summed(self.stop.requested)[0] > 0:
            raise Interrupted(f"stopped {where}")
