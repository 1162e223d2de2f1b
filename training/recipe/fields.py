"""The fields of a dataclass against their annotations: a wrong kind of value is named, never converted."""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from brainstacks.errors import ConfigError

LARGEST_INT = 2**53
"""Above every sensible setting, and below what JSON readers, seeds and indices take."""
LARGEST_FLOAT = 1e38
"""What float32 holds."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100

_EXPONENT = re.compile(r"([-+]?\d+\.?\d*)e([-+]?\d+)", re.IGNORECASE)


def check_fields(owner: Any) -> None:
    """Check every field of the dataclass `owner` against its annotation.

    An annotation is `bool`, `int`, `float` (finite; a whole number is one too), `str`, a `Literal` or a
    dataclass, or made of these with `X | None`, `tuple` (a list is one too) and `Mapping`; `Any` is anything.

    Raises:
        ConfigError: names the first field that does not fit, its value and the rule.
    """
    annotations = get_type_hints(type(owner))
    for field in dataclasses.fields(owner):
        _check(field.name, getattr(owner, field.name), annotations[field.name])


def _check(name: str, value: Any, annotation: Any) -> None:
    kind, parts = get_origin(annotation) or annotation, get_args(annotation)
    if kind in (UnionType, Union):  # the second where one of the parts is a Literal
        if value is not None:
            _check(name, value, *(part for part in parts if part is not NoneType))
    elif kind is Literal:
        _expect(value in parts, name, value, f"one of {', '.join(map(str, parts))}")
    elif kind is tuple:
        _check_list(name, value, parts)
    elif kind is Mapping:
        _expect(isinstance(value, Mapping), name, value, "a mapping of names to values")
        for key, element in value.items():
            _check(f"a name in {name}", key, parts[0])
            _check(f"{name}.{key}", element, parts[1])
    elif kind is bool:
        _expect(isinstance(value, bool), name, value, "true or false")
    elif kind is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        _expect(whole, name, value, "a whole number")
        _expect(abs(value) < LARGEST_INT, name, value, f"a whole number within {LARGEST_INT:,}")
    elif kind is float:
        number = _is_number(value) and abs(value) < math.inf
        _expect(number, name, value, f"a finite number{_advice(value)}")
        _expect(abs(value) <= LARGEST_FLOAT, name, value, f"a number within {LARGEST_FLOAT:g}")
    elif kind is str:
        _expect(isinstance(value, str), name, value, "text")
    elif kind is not Any:
        _expect(isinstance(value, kind), name, value, f"a mapping of names to values ({kind.__name__})")


def _check_list(name: str, value: Any, parts: tuple[Any, ...]) -> None:
    """`parts`: what each element is, or (what all are, `...`)."""
    _expect(isinstance(value, list | tuple), name, value, "a list")
    kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
    _expect(len(value) == len(kinds), name, value, f"a list of {len(kinds)}")
    for i, (element, kind) in enumerate(zip(value, kinds, strict=True)):
        _check(f"{name}[{i}]", element, kind)


def _expect(condition: bool, name: str, value: Any, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {shown(value)}; it is {rule}")


def shown(value: Any) -> str:
    """`repr(value)`, cut to what fits a message: a recipe's aliases make small files large values."""
    text = _SHORT.repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _advice(value: Any) -> str:
    """How to write a number that YAML 1.1 takes for text: its exponents have a sign, and a point before."""
    found = _EXPONENT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return ""
    return f"; YAML reads {value} as text: write {float(found[1])}e{int(found[2]):+d}"
