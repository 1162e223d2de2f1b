"""JSON that a run left on disk, read with one answer to absence and one to damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from brainstacks.errors import ConfigError

T = TypeVar("T")


def read_json(path: Path) -> Any | None:
    """The value in `path`; None where there is no such file. Raises ConfigError: it holds no JSON."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path.name} is no JSON ({error}); make it again, or remove it") from error


def read_as(path: Path, parse: Callable[[Any], T]) -> T | None:
    """`parse` of the value in `path`; None where there is no such file.

    Raises:
        ConfigError: it holds no JSON, or not what `parse` takes.
    """
    document = read_json(path)
    if document is None:
        return None
    try:
        return parse(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path.name} holds something else than expected ({error!r}); make it again, or remove it"
        ) from error


def read_lines(path: Path) -> list[Any]:
    """The values of a JSONL file, without a last line that has no end: it is being written, or was cut off.

    Raises:
        ConfigError: a line is no JSON.
    """
    content = path.read_bytes() if path.is_file() else b""
    values = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            raise ConfigError(
                f"{path.name}, line {number}: no JSON ({error}); remove the line, or the file"
            ) from error
    return values
