"""Trainable parameters are counted as a stack has them, and the LoRA of as many is the nearest."""

from __future__ import annotations

import pytest

from benchmarks.experiments.parameters import lora_of, parameters
from brainstacks.base_model import BaseModel
from tests.tiny import stack_config
from training.recipe.settings import StackRecipe
from training.rounds.active_stack import ActiveStack


@pytest.mark.parametrize("shape", [(2, 4, 2), (3, 2, 2), (5, 1, 1)])
def test_parameters_are_those_of_an_active_stack(tiny_base: BaseModel, shape: tuple[int, int, int]) -> None:
    rank, experts, top_k = shape
    identity = tiny_base.identity
    found = parameters(StackRecipe(rank=rank, experts=experts, top_k=top_k), identity.dims, identity.layers)
    config = stack_config(rank=rank, experts=experts, top_k=top_k)
    active, silent = (ActiveStack(config, identity.dims, noise=noise) for noise in (True, False))
    idle = sum(d_in for d_in, _ in identity.dims.values()) * identity.layers if experts == 1 else 0
    assert found.total == sum(p.numel() for p in active.parameters()) - idle
    without = parameters(
        StackRecipe(rank=rank, experts=experts, top_k=top_k), identity.dims, identity.layers, noise=False
    )
    assert without.total == sum(p.numel() for p in silent.parameters()) - idle
    assert found.noise == found.total - without.total


def test_the_lora_of_equal_parameters_is_the_nearest(tiny_base: BaseModel) -> None:
    identity = tiny_base.identity

    def count(rank: int) -> int:
        return parameters(StackRecipe(rank=rank, experts=1, top_k=1), identity.dims, identity.layers).total

    for wanted in (count(3), count(7) + 5, count(10) - 5):
        lora = lora_of(wanted, 16.0, identity.dims, identity.layers)
        assert abs(count(lora.rank) - wanted) <= min(
            abs(count(other) - wanted) for other in range(1, 20) if other != lora.rank
        )
