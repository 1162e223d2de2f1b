"""What every round of a run trains with."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import Accelerator

from brainstacks.base_model import BaseModel
from brainstacks.layers.hooks import CompositionHooks
from training.log import Log
from training.signals import StopRequest


@dataclass(frozen=True)
class Workshop:
    """Attributes:
    base: open to gradients.
    hooks: attached to it.
    stop: asked once in every step.
    """

    accelerator: Accelerator
    base: BaseModel
    hooks: CompositionHooks
    log: Log
    stop: StopRequest
