"""A value fits its field's annotation or is refused by the field's name, its value and the rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml

from brainstacks.errors import ConfigError
from training.recipe.fields import check_fields


@dataclass(frozen=True)
class Part:
    size: int = 1


@dataclass(frozen=True)
class Whole:
    count: int = 1
    rate: float = 0.5
    on: bool = True
    name: str = "a"
    kind: Literal["a", "b"] = "a"
    limit: int | None = None
    choice: Literal["a", "b"] | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    anything: Mapping[str, Any] = field(default_factory=dict)
    part: Part = field(default_factory=Part)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"count": -3, "rate": 2, "on": False, "name": "", "kind": "b", "limit": 5, "choice": "a"},
        {"pair": [1, 2.5], "many": ["a", "b"], "parts": [Part(), Part(2)]},
        {"shares": {"a": 1, "b": 0.5}, "anything": {"a": None, "b": [math.nan]}},
    ],
)
def test_values_of_their_fields_kinds_are_taken_as_they_are(values: dict[str, Any]) -> None:
    whole = Whole(**values)
    check_fields(whole)
    assert {name: getattr(whole, name) for name in values} == values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"choice": "c"}, "choice is 'c'; it is one of a, b"),
        ({"count": 2.5}, "count is 2.5; it is a whole number"),
        ({"count": 2.0}, "count is 2.0; it is a whole number"),
        ({"count": True}, "count is True; it is a whole number"),
        ({"count": "5"}, "count is '5'; it is a whole number"),
        ({"count": None}, "count is None; it is a whole number"),
        ({"count": 2**53}, f"count is {2**53}; it is a whole number within 9,007,199,254,740,992"),
        ({"rate": 1e300}, "rate is 1e+300; it is a number within 1e+38"),
        ({"rate": 10**400}, "rate is 1" + "0" * 47 + "..." + "0" * 49 + "; it is a number within 1e+38"),
        ({"rate": math.inf}, "rate is inf; it is a finite number"),
        ({"rate": -math.inf}, "rate is -inf; it is a finite number"),
        ({"rate": math.nan}, "rate is nan; it is a finite number"),
        ({"rate": False}, "rate is False; it is a finite number"),
        ({"rate": "fast"}, "rate is 'fast'; it is a finite number"),
        ({"on": "no"}, "on is 'no'; it is true or false"),
        ({"on": 1}, "on is 1; it is true or false"),
        ({"name": 3}, "name is 3; it is text"),
        ({"kind": "c"}, "kind is 'c'; it is one of a, b"),
        ({"kind": ["a"]}, "kind is ['a']; it is one of a, b"),
        ({"limit": "5"}, "limit is '5'; it is a whole number"),
        ({"pair": 0.9}, "pair is 0.9; it is a list"),
        ({"pair": [0.9]}, "pair is [0.9]; it is a list of 2"),
        ({"pair": [0.9, "x"]}, "pair[1] is 'x'; it is a finite number"),
        ({"many": "ab"}, "many is 'ab'; it is a list"),
        ({"many": ["a", 1]}, "many[1] is 1; it is text"),
        ({"parts": [3]}, "parts[0] is 3; it is a mapping of names to values (Part)"),
        ({"shares": [1]}, "shares is [1]; it is a mapping of names to values"),
        ({"shares": {1: 0.5}}, "a name in shares is 1; it is text"),
        ({"shares": {"a": "x"}}, "shares.a is 'x'; it is a finite number"),
        ({"part": None}, "part is None; it is a mapping of names to values (Part)"),
    ],
)
def test_a_value_of_another_kind_is_named_with_the_rule(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_fields(Whole(**values))
    assert refused.value.message == message


@pytest.mark.parametrize(
    ("written", "right"),
    [("2e-4", "2.0e-4"), ("1E3", "1.0e+3"), ("2.5e4", "2.5e+4"), ("-3e+2", "-3.0e+2"), ("1.e5", "1.0e+5")],
)
def test_a_number_that_yaml_reads_as_text_comes_with_a_spelling_that_it_reads_as_that_number(
    written: str, right: str
) -> None:
    value = yaml.safe_load(written)
    assert value == written
    with pytest.raises(ConfigError, match=rf"rate is '.*'; .* as text: write {right.replace('+', '[+]')}$"):
        check_fields(Whole(rate=value))
    assert yaml.safe_load(right) == float(written)
