"""State dicts of torch (optimisers, schedules, generators) as tensors by name and JSON, and back, exactly."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor


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
