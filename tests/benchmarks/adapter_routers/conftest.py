"""A tiny base with two stacks, one of which has fewer projections and two rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.adapter_routers.random_twins import served_stacks
from brainstacks.base_model import BaseModel
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.registry import Registry
from tests.tiny import publish_stack, random_stack, stack_config
from training.data.encoding import Example
from training.router.stacked_base import StackedBase

FEW = stack_config(projections=("q_proj", "v_proj", "down_proj"))


@pytest.fixture
def served(registry: Registry, tiny_base: BaseModel, tmp_path: Path) -> Registry:
    base = tiny_base.identity
    publish_stack(registry, base, "zoology", random_stack(base.dims, 0), tmp_path)
    publish_stack(registry, base, "art", random_stack(base.dims, 1, rounds=2, config=FEW), tmp_path)
    return registry


@pytest.fixture
def stacked(served: Registry, tiny_base: BaseModel) -> StackedBase:
    return StackedBase.load(tiny_base, served)


@pytest.fixture
def stacks(served: Registry) -> dict[str, StackTensors]:
    return served_stacks(served)


@pytest.fixture
def examples() -> list[Example]:
    return [
        Example("a", tuple(range(40, 52)), tuple(range(60, 66))),
        Example("b", tuple(range(70, 75)), tuple(range(90, 101))),
        Example("c", tuple(range(100, 109)), tuple(range(30, 34))),
    ]
