"""Random twins have the norms of what they stand for."""

from __future__ import annotations

import pytest
import torch

from benchmarks.adapter_routers.random_twins import random_twin, with_random_twins
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.registry import Registry
from training.router.stacked_base import StackedBase


def test_twins_have_the_norms_of_every_factor_and_other_values(
    stacks: dict[str, StackTensors], stacked: StackedBase, served: Registry
) -> None:
    stack = stacks["art"]
    one, other = random_twin(stack, 0), random_twin(stack, 1)
    for name, tensor in stack.tensors.items():
        assert one.tensors[name].norm() == pytest.approx(float(tensor.norm()), rel=1e-5)
        for different in (tensor, other.tensors[name]):
            cosine = torch.cosine_similarity(one.tensors[name].flatten(), different.flatten(), dim=0)
            assert abs(cosine) < 0.75
    twins = with_random_twins(stacked, served, 0)
    assert twins.base is stacked.base
    assert list(twins.digests) == list(stacked.digests)
    assert not set(twins.digests.values()) & set(stacked.digests.values())
