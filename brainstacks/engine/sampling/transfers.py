"""Values between host and device: one copy each way, and nobody waits for it before they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor


def to_device(columns: Sequence[Sequence[float]], device: torch.device) -> tuple[Tensor, ...]:
    """Each of `columns` [n] as float64 on `device`, in one copy; integers are exact up to 2**53."""
    staged = torch.tensor([*chain.from_iterable(columns)], dtype=torch.float64)
    if device.type == "cuda":
        staged = staged.pin_memory()  # from other memory, the host waits for the device
    there = staged.to(device, non_blocking=True)
    return torch.split(there, [len(column) for column in columns])


def select(rows: Tensor, indices: Sequence[int]) -> Tensor:
    """`rows[indices]`; without a copy where that is all of them, each once and in order."""
    if list(indices) == list(range(len(rows))):
        return rows
    (places,) = to_device([indices], rows.device)
    return rows.index_select(0, places.long())


class Mark:
    """A place in what `device` has been given to do."""

    def __init__(self, device: torch.device) -> None:
        self._reached = torch.cuda.Event() if device.type == "cuda" else None
        if self._reached is not None:
            self._reached.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Until the device has come so far. Raises what went wrong there meanwhile."""
        if self._reached is not None:
            self._reached.synchronize()


class HostCopy:
    """The values of `tensor` on their way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self._values = tensor.to("cpu", non_blocking=tensor.device.type == "cuda")
        self._arrived = Mark(tensor.device)

    def wait(self) -> Tensor:
        """They have arrived. Raises what went wrong on the device until then."""
        self._arrived.wait()
        return self._values
