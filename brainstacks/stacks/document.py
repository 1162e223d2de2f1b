"""Strict JSON: the one way in which file headers, metadata and manifests are read and written.

JSON as Python reads it lets through repeated keys, `NaN`, `1e400`, lone surrogates and nesting until the
stack ends. None of these may reach a reply that this server builds later, so all are refused here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from brainstacks.errors import InvalidArtifact

MAX_DEPTH = 32
MAX_INTEGER = 2**63 - 1

T = TypeVar("T")


def show(value: object) -> str:
    """`repr(value)`, cut to a length that fits a message whatever a client sent."""
    text = repr(value[:100] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def printable(text: str) -> str:
    """`text` for a terminal: what would move its cursor, colour it or hide something is shown as an escape.
    Line ends and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def parse_json(text: bytes | str, what: str) -> Any:
    """The value of the JSON document `text`, which messages call `what`.

    Raises:
        InvalidArtifact: not JSON in UTF-8, a repeated key, nesting deeper than `MAX_DEPTH`, a number that is
            not finite or an integer beyond 64 bits, or a string that is not Unicode text.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            seen: set[str] = set()
            repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise InvalidArtifact(f"{what} has the key {show(repeated)} twice; every key occurs once")
        return values

    try:
        value = json.loads(text.decode() if isinstance(text, bytes) else text, object_pairs_hook=unique)
    except RecursionError as error:
        raise InvalidArtifact(f"{what} is nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer of thousands of digits
        raise InvalidArtifact(f"{what} is not a JSON document in UTF-8: {str(error)[:200]}") from error
    _check_values(value, what)
    return value


def _check_values(document: Any, what: str) -> None:
    level = [document]
    for _ in range(MAX_DEPTH + 1):
        containers = [value for value in level if isinstance(value, dict | list)]
        for value in level:
            if not isinstance(value, dict | list):
                _check_scalar(value, what)
        if not containers:
            return
        level = [inner for value in containers for inner in value]  # of an object, its keys
        level += [inner for value in containers if isinstance(value, dict) for inner in value.values()]
    raise InvalidArtifact(f"{what} is nested deeper than {MAX_DEPTH} levels")


def _check_scalar(value: Any, what: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidArtifact(f"{what} holds the number {value}; numbers are finite")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise InvalidArtifact(f"{what} holds an integer beyond 64 bits; integers lie in -2^63+1..2^63-1")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidArtifact(f"{what} holds text with a lone surrogate; text is Unicode") from error


def dump_json(document: Mapping[str, Any], *, indent: int | None = None) -> str:
    """`document` as JSON, keys in the order given. Equal documents give equal text.

    Raises:
        InvalidArtifact: a value is not finite or has no JSON form.
    """
    try:
        return json.dumps(document, allow_nan=False, indent=indent)
    except (ValueError, TypeError) as error:
        raise InvalidArtifact(f"the document has no JSON form: {error}") from error


class Fields:
    """Typed reading of one JSON object. Each field is taken once; `end` refuses what is left, by name.

    Args:
        value: a parsed JSON value.
        what: what messages call the object.

    Raises:
        InvalidArtifact: `value` is not an object; (in the readers) a field is missing or of another type.
    """

    def __init__(self, value: Any, what: str) -> None:
        if not isinstance(value, dict):
            raise InvalidArtifact(f"{what} is {show(value)}; it is an object")
        self._values: dict[str, Any] = dict(value)
        self._what = what

    def _take(self, name: str) -> Any:
        if name not in self._values:
            raise InvalidArtifact(f"{self._what} lacks the field {name!r}")
        return self._values.pop(name)

    def _wrong(self, name: str, value: object, rule: str) -> InvalidArtifact:
        return InvalidArtifact(f"{name!r} of {self._what} is {show(value)}; it is {rule}")

    def text(self, name: str) -> str:
        value = self._take(name)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def integer(self, name: str, low: int = -MAX_INTEGER, high: int = MAX_INTEGER) -> int:
        value = self._take(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(name, value, f"an integer in {low}..{high}")
        return value

    def number(self, name: str) -> float:
        value = self._take(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(name, value, "a number")
        return float(value)

    def items(self, name: str) -> list[Any]:
        value = self._take(name)
        if not isinstance(value, list):
            raise self._wrong(name, value, "a list")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._take(name)
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return value

    def nullable(self, read: Callable[[str], T], name: str) -> T | None:
        """None where the field is `null`, else `read(name)`."""
        if name in self._values and self._values[name] is None:
            return self._values.pop(name)  # type: ignore[no-any-return]
        return read(name)

    def optional(self, read: Callable[[str], T], name: str) -> T | None:
        """None where there is no such field, else `read(name)`."""
        return read(name) if name in self._values else None

    def end(self) -> None:
        if self._values:
            unknown = ", ".join(show(name) for name in list(self._values)[:5])
            raise InvalidArtifact(f"{self._what} has no field {unknown}; leave it out")
