"""What memory alone allows: bytes that a decode step must read, and the bandwidth to read them with.

A step of R rows reads the base's weights once, and of each stack that some row uses, the gates and the
factors of the experts that are computed: all of them, or those that some row's gate keeps. With R_s rows on
a stack, and K of N experts kept per token, these are an expected share of

    1 - (1 - K/N)^R_s

of its factors (rows taken to choose independently). KV and activations are left out: they are small beside
the weights in these runs. Many rows can be bound by arithmetic first; the bound only says what no
implementation with these bytes can exceed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from brainstacks.engine.engine import StepEngine
from brainstacks.engine.runner.cpu_backend import CpuBackend
from brainstacks.layers.packed_stack import PackedStack
from brainstacks.stacks.tensors import load_stack

PROBE_BYTES = 256 << 20
"""Far beyond any cache."""


def read_bandwidth(device: torch.device, nbytes: int = PROBE_BYTES, tries: int = 3) -> float:
    """Bytes per second of summing a large tensor; the best of `tries`, since disturbances only slow it."""
    # numpy's memory, as that of the panels is: in huge pages where the system has them.
    tensor = torch.from_numpy(np.ones(nbytes // 4, np.float32)).to(device)
    best = float("inf")
    for _ in range(tries):
        _wait(device)
        start = perf_counter()
        tensor.sum()
        _wait(device)
        best = min(best, perf_counter() - start)
    return tensor.nbytes / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def base_bytes(engine: StepEngine) -> int:
    """Weights that every step reads, as they are held; of an untied input embedding a step reads only some
    rows."""
    if isinstance(engine.backend, CpuBackend):
        return engine.backend.model.nbytes
    base = engine.base
    tensors: dict[int, torch.Tensor] = {id(parameter): parameter for parameter in base.model.parameters()}
    head = base.model.get_output_embeddings()
    embedding = base.model.get_input_embeddings().weight
    if head is not None and head.weight is not embedding:
        tensors.pop(id(embedding), None)
    states = (getattr(parameter, "quant_state", None) for parameter in tensors.values())
    return sum(t.nbytes for t in tensors.values()) + sum(_state_bytes(s) for s in states if s is not None)


def _state_bytes(state: object) -> int:
    """The scales of a 4-bit tensor (bitsandbytes), those of the scales included."""
    scales = getattr(state, "absmax", None)
    nested = getattr(state, "state2", None)
    own = scales.nbytes if isinstance(scales, torch.Tensor) else 0
    return own + (_state_bytes(nested) if nested is not None else 0)


@dataclass(frozen=True)
class StepBytes:
    """Bytes that one step reads.

    Attributes:
        all_experts, chosen_experts: with the stacks' experts all computed, or only those that gates keep.
    """

    all_experts: int
    chosen_experts: int

    def bounds(self, rows: int, bandwidth: float) -> tuple[float, float]:
        """Tokens per second of `rows` rows that `bandwidth` (bytes per second) allows; all, chosen."""
        return rows * bandwidth / self.all_experts, rows * bandwidth / self.chosen_experts


@dataclass(frozen=True)
class StackBytes:
    """Of one stack: what is always read, what all experts are beyond that, and the share of them that one
    token's gate drops."""

    always: int
    experts: int
    dropped: float


def stack_bytes(engine: StepEngine, path: Path) -> StackBytes:
    """Of the stack in that file, as the engine's backend reads it."""
    stack = load_stack(path)
    packed = PackedStack.pack(stack, engine.base.dtype)
    dropped = 1 - stack.config.top_k / stack.config.experts
    if isinstance(engine.backend, CpuBackend):
        return StackBytes(*engine.backend.panels(packed).nbytes, dropped)
    gates = packed.nbytes * sum(t.numel() for name, t in stack.tensors.items() if name.endswith(".gate"))
    gates //= sum(t.numel() for t in stack.tensors.values())
    return StackBytes(gates, packed.nbytes - gates, dropped)


def step_bytes(base: int, rows: Sequence[Iterable[str]], stacks: Mapping[str, StackBytes]) -> StepBytes:
    """Bytes of a step.

    Args:
        base: `base_bytes`.
        rows: the domains that each row applies.
    """
    whole, chosen = float(base), float(base)
    for domain, users in Counter(domain for row in rows for domain in row).items():
        stack = stacks[domain]
        whole += stack.always + stack.experts
        chosen += stack.always + stack.experts * (1 - stack.dropped**users)
    return StepBytes(round(whole), round(chosen))
