"""Which device each layer lies on, of a base that is larger than one device."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from brainstacks.config import DEVICE_MAPS
from brainstacks.device import free_bytes, resolve_device
from brainstacks.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """Neighbouring layers on one device.

    Attributes:
        layers: their numbers; a map's parts have all of a base's, in order.
    """

    device: torch.device
    layers: range


def resolve_devices(device: str, device_map: str | None) -> tuple[torch.device, ...]:
    """Those of a base: of the map where there is one, in the order of the layers.

    Raises:
        ConfigError: both are named, or what is named is not there.
    """
    if device_map is None:
        return (resolve_device(device),)
    if device != "auto":
        raise ConfigError(
            f"device is {device}, and device_map {device_map} names devices too; leave one of them out",
            param="device_map",
        )
    return resolve_device_map(device_map)


def resolve_device_map(name: str) -> tuple[torch.device, ...]:
    """The devices of a map, in the order of the layers: `auto` is every GPU, `cuda:0,cuda:1` these.

    Raises:
        ConfigError: it is neither, or names what is not there.
    """
    if not re.fullmatch(DEVICE_MAPS, name):
        raise ConfigError(
            f"device_map is {name!r}; it is auto, or several devices of one kind, such as cuda:0,cuda:1; "
            "for one device, take --device",
            param="device_map",
        )
    if name != "auto":
        return tuple(map(resolve_device, name.split(",")))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ConfigError(
            "device_map is auto, every GPU, and no CUDA device is available; leave it out", param="device_map"
        )
    return tuple(torch.device("cuda", number) for number in range(count))


def spread(layers: int, devices: Sequence[torch.device], ends: int) -> tuple[Part, ...]:
    """Put so many layers on `devices`, one at least on each, so that the least room that a layer has beside
    the others of its device is the most that it can be.

    Weights, keys and values, and stacks take the same of every layer, so that nothing else is to be known.

    Args:
        ends: bytes of what is no layer (embedding, head), which lies on the first device.

    Raises:
        ConfigError: there are more devices than layers.
    """
    if len(devices) > layers:
        raise ConfigError(
            f"device_map has {len(devices)} devices, and the base {layers} layers; name as many at most",
            param="device_map",
        )
    free = {device: free_bytes(device) for device in devices}
    room = [
        max(0, free[one] // devices.count(one) - (ends if at == 0 else 0)) for at, one in enumerate(devices)
    ]
    counts = [1] * len(devices)
    for _ in range(layers - len(devices)):
        counts[max(range(len(devices)), key=lambda at: room[at] / (counts[at] + 1))] += 1
    firsts = [sum(counts[:at]) for at in range(len(counts))]
    return tuple(
        Part(device, range(first, first + count))
        for device, first, count in zip(devices, firsts, counts, strict=True)
    )
