"""GPUs that are not there: `torch.cuda` as far as the project asks it, with a log of what was asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

GIB = 2**30


class FakeCuda:
    """Args:
    monkeypatch: of the test; its end undoes everything.
    count: of devices, all alike.
    capability: theirs.
    free: bytes of `total` that nobody has taken.

    Attributes:
        log: what streams and the allocator were told, in order.
        current: the calling thread's device.
        lost: every call that waits for a device fails, as after the fault of a kernel.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        count: int = 2,
        capability: tuple[int, int] = (9, 0),
        free: int = 20 * GIB,
        total: int = 24 * GIB,
    ) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.current = 0
        self.lost = False
        self.free = free
        major, minor = capability
        properties = SimpleNamespace(name="NVIDIA Fake", major=major, minor=minor, total_memory=total)
        self._streams = ["steps"]
        fakes: dict[str, Any] = {
            "is_available": lambda: True,
            "device_count": lambda: count,
            "current_device": lambda: self.current,
            "set_device": self._set_device,
            "get_device_properties": lambda device=None: properties,
            "mem_get_info": lambda device=None: (self.free, total),
            "empty_cache": lambda: self.log.append(("empty cache",)),
            "synchronize": self._synchronize,
            "Stream": lambda device=None: "copies",
            "Event": lambda **_: Event(self),
            "stream": self._on,
            "current_stream": lambda device=None: Stream(self, self._streams[-1]),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda _, stream: self.log.append(("keep for", stream.name))
        )

    def _set_device(self, device: torch.device) -> None:
        self.current = device.index

    def _synchronize(self, device: torch.device | None = None) -> None:
        if self.lost:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def _on(self, stream: str) -> Any:
        return _Current(self._streams, stream)


class _Current:
    def __init__(self, streams: list[str], stream: str) -> None:
        self._streams, self._stream = streams, stream

    def __enter__(self) -> None:
        self._streams.append(self._stream)

    def __exit__(self, *_: object) -> None:
        self._streams.pop()


class Stream:
    """Equal to others of its name, as those of torch's are that stand for one stream of the device."""

    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.name = name
        self._cuda = cuda

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def wait_event(self, event: Event) -> None:
        self._cuda.log.append(("waits", self.name, event.number))


class Event:
    """Numbered as they are made."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.number = sum(entry[0] == "event" for entry in cuda.log)
        self._cuda = cuda
        cuda.log.append(("event", self.number))

    def record(self) -> None:
        self._cuda.log.append(("recorded", self._cuda._streams[-1], self.number))

    def synchronize(self) -> None:
        self._cuda._synchronize()
        self._cuda.log.append(("host waits", self.number))
