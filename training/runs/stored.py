"""What a run left on disk: state dicts of torch as tensors by name and JSON, and back, exactly; and JSON,
read with one answer to absence and one to damage.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

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


def flatten(value: Any) -> tuple[dict[str, Tensor], Any]:
    """Take a state dict apart into tensors `<n>`, in order of appearance, and a JSON skeleton.

    Args:
        value: dicts with int or str keys, lists, tuples, tensors, None, bool, int, float and str, nested.

    Raises:
        TypeError: anything else is in it.
    """
    tensors: dict[str, Tensor] = {}

    def skeleton(value: Any) -> Any:
        kind = type(value)
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = value
            return {"tensor": name}
        if kind in (dict, OrderedDict) and all(type(key) in (int, str) for key in value):
            return {"dict": [[key, skeleton(item)] for key, item in value.items()]}
        if kind is tuple:
            return {"tuple": [skeleton(item) for item in value]}
        if kind is list:
            return [skeleton(item) for item in value]
        if value is None or kind in (bool, int, float, str):
            return value
        raise TypeError(
            f"a state dict holds {value!r}, a {kind.__name__}, for which a checkpoint has no form"
        )

    return tensors, skeleton(value)


def unflatten(tensors: Mapping[str, Tensor], skeleton: Any) -> Any:
    """What `flatten` took apart; tensors without the strides, device and sharing that they had."""
    if isinstance(skeleton, list):
        return [unflatten(tensors, item) for item in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    ((kind, content),) = skeleton.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(unflatten(tensors, item) for item in content)
    return {key: unflatten(tensors, item) for key, item in content}
