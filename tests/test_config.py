"""Configurations refuse what they do not know and what cannot be, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from brainstacks.config import PROJECTIONS, EngineConfig, MetaRouterConfig, StackConfig, from_mapping
from brainstacks.errors import ConfigError

STACK: dict[str, Any] = {"rank": 4, "alpha": 8.0, "experts": 4, "top_k": 2, "layers": 3}
ROUTER: dict[str, Any] = {"domains": ("chat", "math"), "token_dim": 8}


def test_the_scaling_is_rank_stabilised() -> None:
    assert StackConfig(rank=16, alpha=16.0, layers=1).scaling == 4.0
    assert StackConfig(**STACK).scaling == 4.0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 1.5}, "rank is 1.5"),
        ({"rank": True}, "rank is True"),
        ({"experts": 65}, "experts is 65"),
        ({"top_k": 5}, "top_k is 5"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"alpha": 1e300}, "alpha is 1e\\+300; it lies in 1/16384..16384"),
        ({"alpha": 1e-300}, "alpha is 1e-300"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": True}, "alpha is True"),
        ({"alpha": 10**400}, "alpha is 10"),
        ({"layers": 0}, "layers is 0"),
        ({"projections": ()}, "projections is"),
        ({"projections": ("v_proj", "q_proj")}, "in that order"),
        ({"projections": ("q_proj", "lm_head")}, "projections is"),
        ({"projections": ("q_proj", "q_proj")}, "projections is"),
    ],
)
def test_an_impossible_stack_is_refused_by_its_value(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        StackConfig(**{**STACK, **change})


def test_projections_are_all_seven_in_forward_order_unless_told_otherwise() -> None:
    assert StackConfig(**STACK).projections == PROJECTIONS
    from_list = {**STACK, "projections": ["q_proj", "down_proj"]}
    assert StackConfig(**from_list).projections == ("q_proj", "down_proj")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"domains": ()}, "domains is empty"),
        ({"domains": ("chat", "chat")}, "repeats a name"),
        ({"token_dim": 0}, "token_dim is 0"),
        ({"sequence_length": 0}, "sequence_length is 0"),
        ({"floors": {"law": 0.2}}, "floors names 'law'"),
        ({"floors": {"chat": 1.5}}, "the floor of 'chat' is 1.5"),
        ({"gate_threshold": 1.0}, "gate_threshold is 1.0"),
    ],
)
def test_an_impossible_router_is_refused_by_its_value(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        MetaRouterConfig(**{**ROUTER, **change})


SWITCHES = {"cuda_graphs", "prefix_caching", "deterministic", "exact"}
CHOICES = {"backend"}
BUDGETS = {"device_stack_bytes", "host_stack_bytes"}
LIMITS = {f.name for f in dataclasses.fields(EngineConfig)} - SWITCHES - CHOICES - BUDGETS


def test_a_backend_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="backend is 'tpu'; it is one of auto, torch, cpu, cuda"):
        engine_config(backend="tpu")


def engine_config(**values: Any) -> EngineConfig:
    return EngineConfig(**values)


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_every_limit_of_the_engine_is_at_least_one(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        engine_config(**{name: 0})
    assert getattr(engine_config(**{name: 1}), name) == 1


@pytest.mark.parametrize("name", sorted(BUDGETS))
def test_a_budget_of_bytes_may_be_nothing_and_not_less(name: str) -> None:
    assert getattr(engine_config(**{name: 0}), name) == 0
    with pytest.raises(ConfigError, match=f"{name} is -1"):
        engine_config(**{name: -1})


def test_unknown_and_missing_keys_are_named_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"StackConfig has no field 'rnak'; it has rank, "):
        from_mapping(StackConfig, {**STACK, "rnak": 4})
    with pytest.raises(ConfigError, match="MetaRouterConfig needs 'domains', 'token_dim'"):
        from_mapping(MetaRouterConfig, {})
    assert from_mapping(StackConfig, STACK) == StackConfig(**STACK)


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EngineConfig().max_queue = 3  # type: ignore[misc]
