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
from math import prod
from time import perf_counter

import torch

from brainstacks.base_model import BaseModel
from brainstacks.stacks.artifact import StackMetadata, stack_shapes

PROBE_BYTES = 256 << 20
"""Far beyond any cache."""


def read_bandwidth(device: torch.device, nbytes: int = PROBE_BYTES, tries: int = 3) -> float:
    """Bytes per second of summing a large tensor; the best of `tries`, since disturbances only slow it."""
    tensor = torch.ones(nbytes // 4, dtype=torch.float32, device=device)
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


def base_bytes(base: BaseModel) -> int:
    """Weights that every step reads, as they are held; of an untied input embedding a step reads only some
    rows."""
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


def step_bytes(
    base: int,
    rows: Sequence[Iterable[str]],
    stacks: Mapping[str, StackMetadata],
    itemsize: int,
) -> StepBytes:
    """Bytes of a step.

    Args:
        base: `base_bytes`.
        rows: the domains that each row applies.
        itemsize: bytes of one element of a stack on the device.
    """
    whole, chosen = float(base), float(base)
    for domain, users in Counter(domain for row in rows for domain in row).items():
        metadata = stacks[domain]
        shapes = dict(stack_shapes(metadata))
        gates = itemsize * sum(prod(shape) for name, shape in shapes.items() if name.endswith(".gate"))
        factors = itemsize * sum(map(prod, shapes.values())) - gates
        dropped = 1 - metadata.config.top_k / metadata.config.experts
        whole += gates + factors
        chosen += gates + factors * (1 - dropped**users)
    return StepBytes(round(whole), round(chosen))
