"""Whether a run computes in the base's own dtype, as it is served, or in float32: what is faster here.

On a GPU it is the base's own: the parameters of the stack in training are float32, and are cast to the
activations' dtype where they are multiplied, so that no autocast is needed.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from brainstacks.base_model import BaseModel, in_float32, load_base
from brainstacks.cpu import cpu
from brainstacks.errors import ConfigError
from brainstacks.layers.dequantized import dequantized, float32_bytes
from training.progress import working
from training.recipe.recipe import Recipe
from training.recipe.settings import ComputeMode
from training.runs.processes import ALONE, Processes

FLOAT32 = "float32"
SHARE = 0.5
"""Of a machine's memory: more of it float32 weights do not take unasked."""

ROUNDS = 3
"""Of a measurement; the median leaves out one that the machine, or a first call, made slow."""
WORK, MOST_TOKENS, LEAST_TOKENS = 1 << 27, 1024, 64
"""Multiplications of a measured forward, and the tokens that it has for that: milliseconds where bfloat16 is
fast, and a few seconds where a run in it would take days."""

Measure = Callable[[nn.Module, torch.dtype, bool], tuple[float, float]]


@dataclass(frozen=True)
class Compute:
    """A choice.

    Attributes:
        dtype: `float32`, or the name of the base's own dtype.
        reason: for people, with the figures that decided.
    """

    dtype: str
    reason: str

    def __str__(self) -> str:
        return f"computes in {self.dtype}: {self.reason}"

    def of(self, base: BaseModel) -> BaseModel:
        """`base`, freshly loaded, as it computes by this choice."""
        return base if self.dtype == base.dtype_name else in_float32(base)


def load_as_stored(recipe: Recipe, device: str) -> BaseModel:
    """The base of `recipe` in the dtype that a run computes in, where float32 is not faster. Raises as
    `load_base`.

    A server computes with the very values of a native base. bfloat16 rounds them, as it rounds all that is
    computed from them, and takes a half to a quarter of the time where the processor multiplies it.
    """
    dtype = torch.bfloat16 if recipe.quantization == "native" else None
    return load_base(recipe.base, quantization=recipe.quantization, device=device, dtype=dtype)


def choose(
    base: BaseModel,
    asked: ComputeMode,
    begun: str | None = None,
    *,
    backward: bool,
    measure: Measure | None = None,
) -> Compute:
    """What a run computes in on `base`, which stays as it is.

    Args:
        asked: the recipe's `compute`.
        begun: what the run computed in before, where it was started already; None where it was not.
        backward: the run takes gradients.
        measure: see `seconds`, which it is by default.

    Raises:
        ConfigError: the base cannot compute in what is asked for, or has no room for it.
    """
    if asked == "auto" and begun is None:
        found = _faster(base, backward, measure or seconds)
    else:
        chosen = begun if begun is not None and asked == "auto" else asked
        found = Compute(chosen, "as the run was started" if asked == "auto" else "as the recipe says")
    _check(found.dtype, base, backward)
    return found


def _check(chosen: str, base: BaseModel, backward: bool) -> None:
    """Raises ConfigError: the base cannot compute in `chosen` on its device, or has no room for it."""
    own = base.dtype_name
    if chosen not in (FLOAT32, own):
        raise ConfigError(
            f"compute is {chosen}, and this base's own dtype is {own}; compute is {own}, {FLOAT32} or auto"
        )
    unfit = _unfit(base.dtype, base.device, backward)
    if chosen == own != FLOAT32 and unfit:
        raise ConfigError(f"compute is {chosen}, and {unfit}; take compute: {FLOAT32}")
    needed, there = float32_bytes(base.model), memory_of(base.device)
    if chosen == FLOAT32 != own and needed > there:
        raise ConfigError(
            f"compute is float32, whose weights take {_giga(needed)}, and the device has {_giga(there)}; "
            + (f"{unfit}: take a smaller base, or another device" if unfit else f"take compute: {own}")
        )


def load_to_measure(
    recipe: Recipe, begun: str | None, report: Callable[[str], None], processes: Processes = ALONE
) -> BaseModel:
    """The base of `recipe` as it is served, or its values in float32, for forwards alone, in each of
    `processes` on its device.

    Errors are those of `load_base` and `choose`.
    """
    with working("loading the base"):
        base = load_as_stored(recipe, str(processes.device))
    compute = processes.first(lambda: choose(base, recipe.compute, begun, backward=False))
    report(str(compute))
    return compute.of(base)


def candidates(
    model: nn.Module, own: torch.dtype, asked: ComputeMode, device: torch.device
) -> tuple[torch.dtype, ...]:
    """What a new run may train in on a base that looks like `model`: one dtype, or two to be measured."""
    if asked != "auto":
        return (getattr(torch, asked),)
    settled = _unmeasured(model, own, device, backward=True)
    return (own, torch.float32) if settled is None else (getattr(torch, settled.dtype),)


def _unmeasured(model: nn.Module, own: torch.dtype, device: torch.device, backward: bool) -> Compute | None:
    """What `auto` takes without a measurement; None where it takes one."""
    name = str(own).removeprefix("torch.")
    unfit = _unfit(own, device, backward)
    if unfit:
        return Compute(FLOAT32, unfit)
    if own == torch.float32 or device.type != "cpu":
        return Compute(name, f"the base's own dtype, on {device.type}")
    needed, there = float32_bytes(model), memory_of(device)
    if needed > SHARE * there:
        return Compute(name, f"weights in float32 would take {_giga(needed)} of the machine's {_giga(there)}")
    return None


def _unfit(own: torch.dtype, device: torch.device, backward: bool) -> str:
    """Why a GPU cannot compute in the base's own dtype; empty where it can."""
    if device.type != "cuda":
        return ""
    if own == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        return (
            f"{torch.cuda.get_device_name(device)} has no bfloat16 of its own (NVIDIA's have from Ampere on)"
        )
    if own == torch.float16 and backward:
        return "gradients in float16 vanish without a loss scale, which training here has none of"
    return ""


def _faster(base: BaseModel, backward: bool, measure: Measure) -> Compute:
    own = base.dtype_name
    settled = _unmeasured(base.model, base.dtype, base.device, backward)
    if settled is not None:
        return settled
    with working("measuring what is faster, bfloat16 or float32"):
        as_it_is, widened = measure(base.sites[0, "k_proj"].module, base.dtype, backward)
    figures = f"{1000 * widened:.1f} ms in float32, {1000 * as_it_is:.1f} ms in {own}"
    passes = "forward and backward" if backward else "forward"
    return Compute(
        FLOAT32 if widened < as_it_is else own, f"the {passes} of one linear takes a core {figures}: {cpu()}"
    )


def seconds(linear: nn.Module, dtype: torch.dtype, backward: bool) -> tuple[float, float]:
    """Median CPU seconds of a pass through `linear` as it is, input in `dtype`, and in its float32 form.

    They take turns, on random input from a fixed seed. What counts is one thread's own CPU time: who else
    works on the machine does not decide. `linear` itself is not called: its first forward might repack it.
    """
    weights = int(linear.in_features) * int(linear.out_features)  # type: ignore[arg-type]
    tokens = max(LEAST_TOKENS, min(MOST_TOKENS, WORK // weights))
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, tokens, int(linear.in_features), generator=random)  # type: ignore[arg-type]
    contestants = [(copy.deepcopy(linear), x.to(dtype)), (dequantized(linear), x)]
    taken: list[list[float]] = [[], []]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(ROUNDS):
            for i, (module, given) in enumerate(contestants):
                taken[i].append(_timed(module, given, backward))
    finally:
        torch.set_num_threads(threads)
    return median(taken[0]), median(taken[1])


def _timed(module: nn.Module, x: torch.Tensor, backward: bool) -> float:
    start = time.thread_time()
    with torch.set_grad_enabled(backward):
        output = module(x.detach().requires_grad_(backward))
        if backward:
            output.backward(output.detach())
    return time.thread_time() - start


def memory_of(device: torch.device) -> int:
    """Bytes that the device has, used or not."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _giga(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
