"""How packed stacks come to the device: beside the steps that compute there, and in order with them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def ordinary_memory(size: int, dtype: torch.dtype) -> Tensor:
    """[size], undefined, in host memory."""
    return torch.empty(size, dtype=dtype)


class Arrival:
    """Of a copy that is in the memory that steps read, as soon as it is made."""

    def use(self, memory: Tensor) -> None:
        """Order what the current stream is given from now on behind the copy into `memory`, which nobody else
        gets before that is done."""


class Transfer:
    """To a device that computes in host memory: nothing moves, and nobody waits."""

    @staticmethod
    def to(device: torch.device, page_locked: int = 0) -> Transfer:
        """The one for `device`. `page_locked`: see `CudaTransfer`."""
        return CudaTransfer(device, page_locked) if device.type == "cuda" else Transfer()

    def host_memory(self, size: int, dtype: torch.dtype) -> Tensor:
        """[size], undefined, in the host memory that stacks are to be packed in."""
        return ordinary_memory(size, dtype)

    @contextmanager
    def copying(self) -> Iterator[Arrival]:
        """What is copied and computed within comes with the arrival, and is there when the block ends."""
        yield Arrival()


class CudaTransfer(Transfer):
    """To a GPU, on a stream of its own.

    Args:
        page_locked: most bytes of host memory that the GPU copies from by itself. What is packed beyond goes
            through the driver's own buffer, which takes longer and is correct too.
    """

    def __init__(self, device: torch.device, page_locked: int) -> None:
        self._stream = torch.cuda.Stream(device)
        self._page_locked = page_locked
        self._lock = threading.Lock()  # guards what follows
        self._locked: WeakSet[Tensor] = WeakSet()

    def host_memory(self, size: int, dtype: torch.dtype) -> Tensor:
        with self._lock:
            held = sum(_taken(memory.nbytes) for memory in self._locked)
            if held + _taken(size * dtype.itemsize) <= self._page_locked:
                try:
                    with torch.cuda.stream(self._stream):  # else another GPU is woken for it
                        memory = torch.empty(size, dtype=dtype, pin_memory=True)
                except RuntimeError as error:
                    self._page_locked = 0
                    log.warning("no page-locked memory can be had; stacks load from other memory: %s", error)
                else:
                    self._locked.add(memory)
                    return memory
        return ordinary_memory(size, dtype)

    @contextmanager
    def copying(self) -> Iterator[Arrival]:
        with torch.cuda.stream(self._stream):
            arrival = _Recorded()
            yield arrival
            arrival.event.record()
        arrival.event.synchronize()


class _Recorded(Arrival):
    """Of what a stream was given up to an event."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(blocking=True)  # a thread that waits sleeps
        self._ordered: set[torch.cuda.Stream] = set()

    def use(self, memory: Tensor) -> None:
        stream = torch.cuda.current_stream(memory.device)
        if stream not in self._ordered:
            stream.wait_event(self.event)
            memory.record_stream(stream)
            self._ordered.add(stream)


def _taken(nbytes: int) -> int:
    """What PyTorch takes for so many page-locked bytes: a power of two, which it keeps for later use."""
    return 1 << max(0, nbytes - 1).bit_length()
