"""A model whose layers lie on several devices: what lies where, and how a forward gets from one to the next.

What is no layer (embedding, rotary angles, last norm, head) lies on the first device, so that ids come in
and logits go out there, whoever asks. At the beginning of a part what the layer is given moves to the part's
device, and what the last layer gives moves back: a copy of the hidden states for each of them. transformers'
own way, accelerate's hooks, would look at the inputs of every module, and copy what is the same for all
layers (rotary angles) for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brainstacks.device_map import Part
from brainstacks.layers.projections import decoder_layers


def module_devices(model: nn.Module, parts: Sequence[Part]) -> dict[str, torch.device]:
    """A device for each module whose children need not be looked at, as transformers' `device_map`.

    Args:
        model: on any device, `meta` too.
    """
    names = {id(module): name for name, module in model.named_modules()}
    layers = decoder_layers(model)
    found = {names[id(layers[number])]: part.device for part in parts for number in part.layers}
    above = {parent for name in found for parent in _above(name)}
    for name in names.values():
        if name not in above and name not in found and name.rpartition(".")[0] in above:
            found[name] = parts[0].device
    return found


def end_bytes(model: nn.Module) -> int:
    """Of what is no layer, as `model` has it."""
    of_layers = {id(parameter) for parameter in decoder_layers(model).parameters()}
    return sum(p.nbytes for p in model.parameters() if id(p) not in of_layers)


def connect(model: nn.Module, parts: Sequence[Part]) -> None:
    """Have a forward of `model`, whose layers are on the devices of `parts`, move from one to the next."""
    from accelerate.hooks import remove_hook_from_submodules

    remove_hook_from_submodules(model)  # with which transformers loaded it
    layers = decoder_layers(model)
    for part in parts[1:]:
        entry = _Entry(part.device)
        for number in part.layers:
            hook = entry.first if number == part.layers[0] else entry.further
            layers[number].register_forward_pre_hook(hook, with_kwargs=True)
    home = parts[0].device
    layers[-1].register_forward_hook(lambda module, args, output: _there(output, home))


def _above(name: str) -> Iterator[str]:
    """The modules that it is in."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _there(value: Any, device: torch.device) -> Any:
    """A tensor, or a tuple of some, on `device`; all else as it is."""
    if isinstance(value, tuple):
        return tuple(_there(one, device) for one in value)
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


class _Entry:
    """What the layers of a part are given, on its device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._common: dict[int, tuple[Any, Any]] = {}  # by identity: what was given, and the same there

    def first(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before the part's first layer: another forward begins."""
        self._common = {}
        return self.further(module, args, kwargs)

    def further(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before the others, which get the one before's output, and by name what all layers get."""
        common = {name: self._moved(value) for name, value in kwargs.items()}
        return _there(args, self._device), common

    def _moved(self, value: Any) -> Any:
        if id(value) not in self._common:
            self._common[id(value)] = value, _there(value, self._device)
        return self._common[id(value)][1]
