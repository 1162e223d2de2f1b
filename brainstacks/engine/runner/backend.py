"""What computes a step: one small interface, and the choice of who implements it."""

from __future__ import annotations

import logging
from typing import Protocol

from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.cpu import cpu
from brainstacks.engine.runner.batch import StepBatch
from brainstacks.engine.runner.kv_cache import PagedCache
from brainstacks.engine.runner.torch_backend import TorchBackend
from brainstacks.errors import ConfigError, UnsupportedModel
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.packed_stack import PackedStack

log = logging.getLogger(__name__)

ASKED_FOR = "the option backend names it"


class Backend(Protocol):
    """Attributes:
    name: what it is and computes with, for people.
    reason: why it was chosen, for people.
    fixed_shapes: a row's result depends, in its last bits, on the shapes that others decide.
    own_threads: it computes with threads of its own, not torch's.
    asynchronous: it returns before its results are there; what is asked of it is computed in order.
    """

    name: str
    reason: str
    own_threads: bool
    fixed_shapes: bool
    asynchronous: bool

    def prepare(self, stack: PackedStack) -> None:
        """Make ready what steps need of a stack, so that no step has to; called on any thread."""

    def run(self, batch: StepBatch, bank: StackBank) -> Tensor:
        """Compute a step and store its keys and values.

        Returns:
            logits [L, V] float32 of `batch.wanted`, before any soft cap; nothing later changes them.
        """

    def hidden_states(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Compute a step with the base alone and store its keys and values.

        Returns:
            the middle hidden state, and the last after the final norm, of every token, [T, d] float32.
        """


def choose(base: BaseModel, hooks: CompositionHooks, cache: PagedCache, config: EngineConfig) -> Backend:
    """The one that `config.backend` names; `auto` takes the compiled one on a CPU where it knows the decoder.

    Raises:
        ConfigError: it cannot compute this base.
    """
    chosen = _choose(base, hooks, cache, config)
    log.info("steps are computed by %s: %s; the processor is %s", chosen.name, chosen.reason, cpu())
    return chosen


def _choose(base: BaseModel, hooks: CompositionHooks, cache: PagedCache, config: EngineConfig) -> Backend:
    if config.backend == "torch":
        return _torch(base, hooks, cache, config, ASKED_FOR)
    if base.device.type != "cpu":
        if config.backend == "cpu":
            raise ConfigError(
                f"the backend cpu computes on the CPU, and the base is on {base.device}", param="backend"
            )
        return _torch(
            base, hooks, cache, config, f"the base is on {base.device}, for which nothing is compiled"
        )
    from brainstacks.engine.runner.cpu_backend import CpuBackend

    reason = ASKED_FOR if config.backend == "cpu" else "the compiled step knows this decoder"
    try:
        return CpuBackend(base, cache, reason, exact=config.exact or config.deterministic)
    except UnsupportedModel as error:
        if config.backend == "cpu":
            raise ConfigError(f"the backend cpu does not compute {base.name!r}: {error.message}") from error
        log.warning("%s is computed by PyTorch, which is slower on a CPU: %s", base.name, error.message)
        return _torch(base, hooks, cache, config, f"the compiled step does not compute it: {error.message}")


def _torch(
    base: BaseModel, hooks: CompositionHooks, cache: PagedCache, config: EngineConfig, reason: str
) -> TorchBackend:
    if config.deterministic and base.quantization == "int8":
        raise ConfigError(
            "--deterministic is refused with --quantization int8 where PyTorch computes: bitsandbytes picks "
            "outlier columns over the whole batch, so a request's neighbours would change it; choose nf4",
            param="quantization",
        )
    return TorchBackend(base, hooks, cache, reason)
