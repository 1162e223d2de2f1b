"""What computes a step: one small interface, and the choice of who implements it."""

from __future__ import annotations

import logging
from typing import Protocol

from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.device import processor
from brainstacks.engine.runner.batch import StepBatch
from brainstacks.engine.runner.kv_cache import NewCache, PagedCache
from brainstacks.engine.runner.torch_backend import TorchBackend
from brainstacks.errors import ConfigError, UnsupportedModel
from brainstacks.layers.bank import StackBank
from brainstacks.layers.families import check_attention
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
    cache: its keys and values.
    asynchronous: it returns before its results are there; what is asked of it is computed in order.
    """

    name: str
    reason: str
    own_threads: bool
    fixed_shapes: bool
    cache: PagedCache
    asynchronous: bool

    def prepare(self, stack: PackedStack) -> None:
        """Make ready what steps need of a stack, so that no step has to; called on any thread."""

    def lay_out(self, batch: StepBatch, bank: StackBank) -> None:
        """Do what can be done for `run` of this very batch, of decode rows, before its ids are there."""

    def run(self, batch: StepBatch, bank: StackBank) -> Tensor:
        """Compute a step and store its keys and values.

        Returns:
            logits [L, V] float32 of `batch.wanted`, before any soft cap; the next step may overwrite them.
        """

    def hidden_states(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Compute a step with the base alone and store its keys and values.

        Returns:
            the middle hidden state, and the last after the final norm, of every token, [T, d] float32.
        """


def choose(base: BaseModel, hooks: CompositionHooks, new_cache: NewCache, config: EngineConfig) -> Backend:
    """The one that `config.backend` names; `auto` takes the fastest that knows the decoder and the device.

    Raises:
        ConfigError: it cannot compute this base, or there is no room for its keys and values.
    """
    chosen = _choose(base, hooks, new_cache, config)
    where = processor(base.device)
    log.info("steps are computed by %s: %s; the processor is %s", chosen.name, chosen.reason, where)
    return chosen


def _choose(base: BaseModel, hooks: CompositionHooks, new_cache: NewCache, config: EngineConfig) -> Backend:
    kind = base.device.type if config.backend == "auto" else config.backend
    reason = ASKED_FOR if config.backend != "auto" else f"the base is on {base.where}"
    if len(base.parts) > 1 and kind in COMPILED:
        parts = f"{len(base.parts)} parts, on {base.where}"
        one = f"the backend {kind} computes on one device, and the base's layers are in {parts}"
        if config.backend == kind:
            raise ConfigError(f"{one}; take --backend torch, or leave out --device-map", param="backend")
        reason = one
    elif kind in COMPILED:
        try:
            return COMPILED[kind](base, new_cache, config, reason)
        except UnsupportedModel as error:
            problem = error.message
        if config.backend == kind:
            raise ConfigError(f"the backend {kind} does not compute {base.name!r}: {problem}")
        where = "a CPU" if kind == "cpu" else "a GPU"
        log.warning("%s is computed by PyTorch, which is slower on %s: %s", base.name, where, problem)
        reason = f"the backend {kind} does not compute it: {problem}"
    _refuse_int8(base, config)
    return TorchBackend(base, hooks, new_cache(PagedCache), reason)


def _cpu(base: BaseModel, new_cache: NewCache, config: EngineConfig, reason: str) -> Backend:
    """Raises UnsupportedModel: it does not know the decoder."""
    if base.device.type != "cpu":
        raise ConfigError(
            f"the backend cpu computes on the CPU, and the base is on {base.device}", param="backend"
        )
    from brainstacks.engine.runner.cpu_backend import CpuBackend

    return CpuBackend(base, new_cache, reason, exact=config.exact or config.deterministic)


def _cuda(base: BaseModel, new_cache: NewCache, config: EngineConfig, reason: str) -> Backend:
    """Raises UnsupportedModel: it does not know the decoder."""
    try:
        from brainstacks.engine.runner.cuda_backend import CudaBackend
        from brainstacks.gpu_kernels.launch import INTERPRETED
        from brainstacks.layers.fused_norms import fuse
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the backend cuda needs the package {error.name}, which PyTorch's CUDA build brings; "
            "install that build, or choose --backend torch",
            param="backend",
        ) from error
    if base.device.type != "cuda" and not INTERPRETED:
        raise ConfigError(
            f"the backend cuda computes on a GPU, and the base is on {base.device}", param="backend"
        )
    check_attention(base.model.config.get_text_config())
    _refuse_int8(base, config)
    fuse(base.model)
    return CudaBackend(base, new_cache(PagedCache), reason, config)


COMPILED = {"cpu": _cpu, "cuda": _cuda}
"""What is faster than PyTorch where it knows the decoder, by the kind of device."""


def _refuse_int8(base: BaseModel, config: EngineConfig) -> None:
    if config.deterministic and base.quantization == "int8" and base.device.type == "cpu":
        raise ConfigError(
            "--deterministic is refused with --quantization int8 where PyTorch computes on a CPU: there "
            "bitsandbytes picks outlier columns over the whole batch, so a request's neighbours would change "
            "it; choose nf4",
            param="quantization",
        )
