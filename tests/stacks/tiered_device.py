"""A device with tiers whose loads a test can hold, break and count."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from brainstacks.layers.bank import Key, StackBank
from brainstacks.layers.packed_stack import PackedStack, StackTensors
from brainstacks.stacks.artifact import stack_shapes
from brainstacks.stacks.lease import Lease, Resident
from brainstacks.stacks.manifest import StackVersion
from brainstacks.stacks.residency import packed_bytes
from brainstacks.stacks.tiers import Tiers
from tests.stacks.files import stack_metadata

UNIT = packed_bytes(stack_metadata("any", 1), torch.float32)
"""Bytes of a stack of one round; n rounds take n times as many."""


def resident(domain: str, version: int = 1, rounds: int = 1) -> Resident:
    published = StackVersion(version, f"{domain}-{version}", 100, 0, rounds=rounds, rank=2, experts=2)
    return Resident(domain, published, stack_metadata(domain, rounds), rounds * UNIT)


def read(one: Resident) -> StackTensors:
    tensors = {name: torch.zeros(shape) for name, shape in stack_shapes(one.metadata)}
    return StackTensors(one.metadata.config, one.metadata.rounds, tensors)


class WatchedBank(StackBank):
    """A bank that a test can hold or break, and that remembers the most it ever took."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), torch.float32)
        self.most = 0
        self.loads: list[Key] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken: dict[Key, Exception] = {}

    def add(self, key: Key, stack: StackTensors | PackedStack) -> None:
        if not self.gate.wait(300):
            raise AssertionError("the test never opened the gate")
        if key in self.broken:
            raise self.broken[key]
        super().add(key, stack)
        self.loads.append(key)
        self.most = max(self.most, self.nbytes)


class Device:
    """Tiers over a watched bank, in units of one round."""

    def __init__(self, device: int | None, host: int = 0) -> None:
        self.bank = WatchedBank()
        limit = None if device is None else device * UNIT
        self.tiers = Tiers(self.bank, read, limit, host * UNIT)

    def serve(self, *residents: Resident, pinned: Sequence[Resident] = ()) -> None:
        self.tiers.serve(residents, pinned)

    def acquire(self, *residents: Resident) -> Lease:
        return self.tiers.acquire({one.domain: one for one in residents})

    def use(self, *residents: Resident) -> None:
        """One request from beginning to end."""
        lease = self.acquire(*residents)
        lease.wait()
        self.tiers.release(lease)

    def tier(self, one: Resident) -> str:
        self.tiers.settle()
        return self.tiers.tier(one.key)

    @property
    def resident(self) -> set[Key]:
        self.tiers.settle()
        return set(self.bank.keys)
