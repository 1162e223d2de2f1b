"""No setting can be wrong silently, whether it comes from a file or from Python."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from brainstacks.errors import ConfigError
from training.recipe.recipe import DomainRecipe, Recipe, SourceRecipe
from training.recipe.settings import DataRecipe, NullSpaceConfig, RoundConfig, RouterRecipe, StackRecipe

DEFAULTS: tuple[Any, ...] = (
    DataRecipe(),
    StackRecipe(),
    RoundConfig(),
    NullSpaceConfig(),
    RouterRecipe(),
    SourceRecipe("hub:x"),
    DomainRecipe("chat", "MIT"),
    Recipe("b", (DomainRecipe("chat", "MIT"),)),
)
FIELDS = [
    pytest.param(settings, field.name, field.type, id=f"{type(settings).__name__}.{field.name}")
    for settings in DEFAULTS
    for field in dataclasses.fields(settings)
]

NOT_APPLIED = ", for a weight up to that is not applied, and is at most 1"


@pytest.mark.parametrize(("settings", "name", "kind"), FIELDS)
def test_every_field_refuses_what_is_not_of_its_kind_by_name(settings: Any, name: str, kind: str) -> None:
    numbers = {"int": [True, "5", 2.5, None], "float": [True, "2e-4", math.inf, math.nan, None]}
    for wrong in (object(), *numbers.get(kind, [])):
        with pytest.raises(ConfigError, match=f"^{name} is "):
            dataclasses.replace(settings, **{name: wrong})


@pytest.mark.parametrize(("settings", "name", "kind"), FIELDS)
def test_no_number_may_be_negative(settings: Any, name: str, kind: str) -> None:
    if kind in ("int", "float", "int | None"):
        with pytest.raises(ConfigError, match=f"{name} is -1"):
            dataclasses.replace(settings, **{name: -1})


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (DataRecipe, {"max_tokens": 15}, "max_tokens is 15; it is at least 16"),
        (StackRecipe, {"rank": 0}, "rank is 0; it lies in 1..1024"),
        (StackRecipe, {"experts": 65}, "experts is 65; it lies in 1..64"),
        (StackRecipe, {"top_k": 9}, "top_k is 9; it lies in 1..experts (4)"),
        (StackRecipe, {"alpha": 0.0}, "alpha is 0.0; it lies in 1/16384..16384"),
        (RoundConfig, {"steps": 0}, "steps is 0; it is at least 1"),
        (RoundConfig, {"clip": 0}, "clip is 0; it is positive"),
        (RoundConfig, {"betas": [0.9, 1.5]}, "betas is [0.9, 1.5]; both are at least 0 and less than 1"),
        (RoundConfig, {"betas": [0.9, 1.0]}, "betas is [0.9, 1.0]; both are at least 0 and less than 1"),
        (NullSpaceConfig, {"directions": 0}, "directions is 0; it is at least 1"),
        (RouterRecipe, {"label_prior": 1.5}, "label_prior is 1.5; it lies in 0..1"),
        (RouterRecipe, {"margin": 0.6}, "margin is 0.6; it lies in 0..0.5"),
        (RouterRecipe, {"dropout": 1.0}, "dropout is 1.0; it is at least 0 and less than 1"),
        (RouterRecipe, {"gate_threshold": 1}, "gate_threshold is 1; it is at least 0 and less than 1"),
        (
            RouterRecipe,
            {"floors": {"chat": 1.5}},
            "floors.chat is 1.5; it lies above gate_threshold (0.12)" + NOT_APPLIED,
        ),
        (
            RouterRecipe,
            {"floors": {"chat": 0.1}},
            "floors.chat is 0.1; it lies above gate_threshold (0.12)" + NOT_APPLIED,
        ),
        (
            RouterRecipe,
            {"soft_levels": [0.0]},
            "soft_levels is [0.0]; it is one or more weights above gate_threshold (0.12), up to which none "
            "is applied, and at most 1",
        ),
    ],
)
def test_a_value_outside_its_range_is_named_with_the_range(
    cls: type[Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        cls(**values)
    assert refused.value.message == message


def test_lists_become_tuples_so_that_settings_compare_by_what_they_say() -> None:
    listed: Any = [0.9, 0.95]
    assert RoundConfig(betas=listed) == RoundConfig()
    assert dataclasses.replace(RouterRecipe(), soft_levels=listed).soft_levels == (0.9, 0.95)


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (2, 2), (4, 2)])
def test_a_token_uses_two_experts_unless_there_is_but_one(experts: int, top_k: int) -> None:
    assert StackRecipe(experts=experts).config(layers=1).top_k == top_k
