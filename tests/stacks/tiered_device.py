"""A stack cache whose loads a test can hold, break and count."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from brainstacks.layers.bank import Key, StackBank
from brainstacks.layers.packed_stack import PackedStack, Shape, StackTensors
from brainstacks.stacks.artifact import stack_shapes
from brainstacks.stacks.lease import Lease, ServedStack
from brainstacks.stacks.manifest import StackVersion
from brainstacks.stacks.stack_cache import StackCache
from tests.stacks.files import stack_metadata

_ANY = stack_metadata("any", 1)
UNIT = Shape.of(_ANY.config, _ANY.dims).nbytes(1, torch.float32)
"""Bytes of a stack of one round; n rounds take n times as many."""


def version(domain: str, number: int = 1, rounds: int = 1) -> ServedStack:
    published = StackVersion(number, f"{domain}-{number}", 100, 0, rounds=rounds, rank=2, experts=2)
    return ServedStack(domain, published, stack_metadata(domain, rounds), rounds * UNIT)


A, B, C, D = (version(name) for name in ("a", "b", "c", "d"))
BIG = version("big", rounds=2)


class WatchedBank(StackBank):
    """A bank that a test can hold or break, and that remembers the most it ever took.

    Attributes:
        room: bytes that the device has for stacks, whatever the cache believes; None for any number.
    """

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), torch.float32)
        self.most = 0
        self.room: int | None = None
        self.prepare_with(self._fit)
        self.loads: list[Key] = []
        self.gate = threading.Event()
        self.gate.set()

    def place(self, stack: StackTensors | PackedStack) -> PackedStack:
        if not self.gate.wait(300):
            raise AssertionError("the test never opened the gate")
        return super().place(stack)

    def _fit(self, stack: PackedStack) -> None:
        if self.room is not None and self.nbytes + stack.nbytes > self.room:
            raise torch.OutOfMemoryError("no memory")

    def put(self, key: Key, placed: PackedStack) -> None:
        super().put(key, placed)
        self.loads.append(key)
        self.most = max(self.most, self.nbytes)


class Device:
    """A cache over a watched bank, in units of one round."""

    def __init__(self, device: int | None, host: int = 0) -> None:
        self.bank = WatchedBank()
        self.broken: dict[Key, Exception] = {}
        limit = None if device is None else device * UNIT
        self.cache = StackCache(self.bank, self._read, limit, host * UNIT)

    def _read(self, one: ServedStack) -> StackTensors:
        if one.key in self.broken:
            raise self.broken[one.key]
        tensors = {name: torch.zeros(shape) for name, shape in stack_shapes(one.metadata)}
        return StackTensors(one.metadata.config, one.metadata.rounds, tensors)

    def serve(self, *stacks: ServedStack, pinned: Sequence[ServedStack] = ()) -> None:
        self.cache.serve({one.domain: one for one in stacks}, [one.domain for one in pinned])

    def acquire(self, *stacks: ServedStack) -> Lease:
        return self.cache.acquire([one.domain for one in stacks])

    def use(self, *stacks: ServedStack) -> None:
        """One request from beginning to end."""
        lease = self.acquire(*stacks)
        lease.wait()
        self.cache.release(lease)

    def tier(self, one: ServedStack) -> str:
        self.cache.wait_for_loads()
        return self.cache.tier(one.domain)

    @property
    def resident(self) -> set[Key]:
        self.cache.wait_for_loads()
        return set(self.bank.keys)
