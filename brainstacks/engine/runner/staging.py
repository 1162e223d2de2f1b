"""Arrays of a step that travel to the device together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LINE = 16
"""Bytes that a section begins with a multiple of, as kernels read vectors."""

_NUMPY: dict[torch.dtype, Any] = {
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.float32: np.float32,
}

Section = tuple[torch.dtype, tuple[int, ...]]
"""dtype, one of these, and shape."""


class Staging:
    """One buffer on the host, pinned where there is a GPU, and one on the device, in sections. What the host
    writes goes over in one copy, in order with what was enqueued before.

    Args:
        sections: name -> what it holds. Of the last one a step may send the front alone.

    Attributes:
        host: the sections as the host fills them in.
        there: the sections on the device; they never move.
    """

    def __init__(self, device: torch.device, sections: Mapping[str, Section]) -> None:
        sizes = {
            name: -(-math.prod(shape) * dtype.itemsize // LINE) * LINE
            for name, (dtype, shape) in sections.items()
        }
        total = sum(sizes.values())
        self._there = torch.zeros(total, dtype=torch.uint8, device=device)
        self._host, array = host_memory(total, device)
        self.host: dict[str, np.ndarray[Any, Any]] = {}
        self.there: dict[str, Tensor] = {}
        start = 0
        for name, (dtype, shape) in sections.items():
            bytes_ = slice(start, start + math.prod(shape) * dtype.itemsize)
            self.host[name] = array[bytes_].view(_NUMPY[dtype]).reshape(shape)
            self.there[name] = self._there[bytes_].view(dtype).view(shape)
            self._last = start, dtype.itemsize
            start += sizes[name]
        self._sent = torch.cuda.Event() if device.type == "cuda" else None

    def open(self) -> dict[str, np.ndarray[Any, Any]]:
        """`host`, once what was sent before has left it."""
        if self._sent is not None:
            self._sent.synchronize()
        return self.host

    def send(self, last: int | None = None) -> None:
        """Copy to the device; of the last section the first `last` values."""
        start, itemsize = self._last
        size = len(self._host) if last is None else start + last * itemsize
        self._there[:size].copy_(self._host[:size], non_blocking=True)
        if self._sent is not None:
            self._sent.record()


def host_memory(size: int, device: torch.device) -> tuple[Tensor, NDArray[np.uint8]]:
    """Bytes on the host, from which a copy to the device needs no wait, and the same as an array."""
    memory = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    return memory, memory.numpy()
