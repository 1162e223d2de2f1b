"""The training-free routers as their papers write them: token by token, over whole matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from brainstacks.layers.packed_stack import StackTensors
from brainstacks.layers.projections import find_sites
from tests.tiny import plain_logits
from training.router.stacked_base import StackedBase


def whole(stack: StackTensors, layer: int, projection: str) -> Tensor:
    """[d_out, d_in], s * sum of B A over rounds and experts."""
    total = torch.zeros(())
    for n in range(stack.rounds):
        part = f"rounds.{n}.layers.{layer}.{projection}"
        total = total + stack.config.scaling * stack.tensors[f"{part}.B"] @ stack.tensors[f"{part}.A"]
    return total


def score(router: str, stack: StackTensors, layer: int, projection: str, x: Tensor) -> float:
    """Of one token x [d_in]; -inf where the stack has no delta."""
    if projection not in stack.config.projections:
        return -math.inf
    delta = whole(stack, layer, projection)
    if router == "SpectR":
        return float((delta @ x).norm())
    values, vectors = torch.linalg.eigh(delta.T @ delta)
    return abs(float(vectors[:, values.argmax()] @ x))


def coefficients(
    router: str, stacks: Sequence[StackTensors], layer: int, projection: str, x: Tensor, top: int
) -> list[float]:
    """Of each stack, for one token."""
    scores = [score(router, stack, layer, projection, x) for stack in stacks]
    kept = sorted(range(len(scores)), key=lambda i: -scores[i])[:top]
    powers = [math.exp(scores[i] - max(scores)) if i in kept else 0.0 for i in range(len(scores))]
    return [power / sum(powers) for power in powers]


def inputs(stacked: StackedBase, ids: Sequence[int]) -> Mapping[tuple[int, str], Tensor]:
    """(layer, projection) -> [T, d_in], the base's own."""
    found: dict[tuple[int, str], Tensor] = {}
    handles = [
        site.module.register_forward_pre_hook(lambda _, args, at=at: found.update({at: args[0][0]}))
        for at, site in find_sites(stacked.base.model).items()
    ]
    plain_logits(stacked.base.model, ids)
    for handle in handles:
        handle.remove()
    return found
