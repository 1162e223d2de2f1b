"""Trainable parameters of MoE-LoRA stacks, and the LoRA that has as many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training.recipe.settings import StackRecipe

Dims = Mapping[str, tuple[int, int]]
"""Projection -> (d_in, d_out)."""


@dataclass(frozen=True)
class Parameters:
    """Trainable parameters of one round (counts).

    Attributes:
        deltas: A and B of all experts.
        gates: the expert gates; a single expert's is 1 for every token, and counts as none.
        noise: the noise weights of the gates, which are for training only.
    """

    deltas: int
    gates: int
    noise: int

    @property
    def total(self) -> int:
        return self.deltas + self.gates + self.noise


def parameters(stack: StackRecipe, dims: Dims, layers: int, noise: bool = True) -> Parameters:
    """Of one round with deltas on all projections of all layers; `noise`, if any, where a gate chooses."""
    inputs = sum(d_in for d_in, _ in dims.values())
    gates = layers * stack.experts * inputs if stack.experts > 1 else 0
    noises = gates if noise and stack.experts > stack.config(layers).top_k else 0
    return Parameters(layers * stack.experts * stack.rank * _per_rank(dims), gates, noises)


def lora_of(count: int, alpha: float, dims: Dims, layers: int) -> StackRecipe:
    """The rsLoRA with the number of parameters nearest to `count`: one expert, no gate, no noise."""
    rank = max(1, round(count / (layers * _per_rank(dims))))
    return StackRecipe(rank=rank, alpha=alpha, experts=1, top_k=1, dtype="float32")


def _per_rank(dims: Dims) -> int:
    return sum(d_in + d_out for d_in, d_out in dims.values())
