"""Where stack versions are, within byte budgets; bookkeeping, to be called under the stack cache's lock.

    state      on the device    host copy    how it goes on
    absent     no               perhaps      room was reserved: loading
    loading    room reserved    perhaps      it has come: resident; or not: failed; given up: absent
    resident   yes              perhaps      its room is needed and nothing holds it: absent
    failed     no               no           as absent

Frozen weights never change, so to evict is to drop: what was packed once stays in host memory as far as there
is room, and on a CPU it is the very memory that steps read.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

from brainstacks.errors import InvalidRequest
from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import PackedStack
from brainstacks.stacks.cache_stats import CacheStats, Tier
from brainstacks.stacks.lease import ServedStack, StackKey

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Place:
    """Of one version.

    Attributes:
        host: the stack, packed, in host memory.
        holds: who needs it on the device.
        problem: why it failed.
        gone: to be called when it is forgotten.
    """

    stack: ServedStack
    state: Literal["absent", "loading", "resident", "failed"] = "absent"
    host: PackedStack | None = None
    holds: int = 0
    problem: str = ""
    gone: Callable[[], object] | None = None

    @property
    def has_room(self) -> bool:
        """Its bytes on the device are its own."""
        return self.state in ("loading", "resident")

    @property
    def tier(self) -> Tier:
        if self.state == "resident":
            return "device"
        return "disk" if self.host is None else "host"


class Places:
    """Args:
    bank: the device.
    device_bytes: most bytes of stacks there; None for no limit.
    host_bytes: most bytes of packed stacks in host memory beside it.
    """

    def __init__(self, bank: StackBank, device_bytes: int | None, host_bytes: int) -> None:
        self.bank = bank
        self.device_bytes = device_bytes
        self.host_bytes = host_bytes
        self.counts = CacheStats()
        self._places: OrderedDict[StackKey, Place] = OrderedDict()  # least recently used first

    def of(self, stack: ServedStack) -> Place:
        return self._places.setdefault(stack.key, Place(stack))

    def get(self, key: StackKey) -> Place | None:
        return self._places.get(key)

    def hold(self, place: Place, change: int) -> None:
        """So many need it on the device more, or less."""
        place.holds += change
        self._places.move_to_end(place.stack.key)

    def put(self, place: Place, host: PackedStack, there: PackedStack) -> None:
        """It has come."""
        self.bank.put(place.stack.key, there)
        place.state, place.host = "resident", host
        self._trim()

    def evict(self, place: Place) -> None:
        """Take its room on the device back."""
        if place.state == "resident":
            self.counts.evictions["device"] += 1
        self._leave(place)
        self._trim()

    def evict_idle(self, kept: Iterable[ServedStack]) -> bool:
        """Take the room of all back that nothing holds, but for `kept`; whether there were any."""
        keys = {stack.key for stack in kept}
        idle = [
            place
            for key, place in self._places.items()
            if place.state == "resident" and not place.holds and key not in keys
        ]
        for place in idle:
            self.evict(place)
        if idle:
            log.warning("the device is full: %d stacks that nobody uses leave it", len(idle))
        return bool(idle)

    def forget_all_but(self, keys: Collection[StackKey]) -> list[Place]:
        """The places that are no more."""
        forgotten = [self._places.pop(key) for key in self._places.keys() - keys]
        for place in forgotten:
            self._leave(place)
        return forgotten

    def misfit(
        self, stacks: Mapping[str, ServedStack], pinned: Collection[ServedStack]
    ) -> InvalidRequest | None:
        """Why `stacks` (by domain) could never be on the device together, beside what is pinned there."""
        keys = {stack.key for stack in stacks.values()}
        total = sum(stack.nbytes for stack in stacks.values())
        beside = sum(stack.nbytes for stack in pinned if stack.key not in keys)
        if self.device_bytes is None or not keys or total + beside <= self.device_bytes:
            return None
        also = f" beside {beside} bytes of pinned stacks" if beside else ""
        return InvalidRequest(
            f"the stacks {', '.join(stacks)} take {total} bytes on the device{also}; --device-stack-bytes is "
            f"{self.device_bytes}; ask for fewer of them (routing.top), or start the server with more room",
            param="routing",
        )

    def victims(self, stacks: Iterable[ServedStack], kept: Iterable[ServedStack]) -> list[Place] | None:
        """Who has to leave the device so that these fit, least recently used first.

        Args:
            kept: who must not leave, besides these and what is held.

        Returns:
            None: they must wait.
        """
        if self.device_bytes is None:
            return []
        wanted = {stack.key: stack.nbytes for stack in stacks}
        staying = {*wanted, *(stack.key for stack in kept)}
        there = {key: place for key, place in self._places.items() if place.has_room}
        excess = sum(place.stack.nbytes for place in there.values()) - self.device_bytes
        excess += sum(nbytes for key, nbytes in wanted.items() if key not in there)
        found = []
        for key, place in there.items():
            if excess <= 0:
                break
            if not place.holds and key not in staying:
                found.append(place)
                excess -= place.stack.nbytes
        return found if excess <= 0 else None

    def failures(self, stacks: Iterable[ServedStack]) -> dict[StackKey, str]:
        """Those of `stacks` whose last load failed, and why."""
        places = map(self.of, stacks)
        return {place.stack.key: place.problem for place in places if place.state == "failed"}

    def stats(self, disk_bytes: int) -> CacheStats:
        """Counts so far, bytes and budgets now."""
        stats = deepcopy(self.counts)
        stats.bytes = {"device": self.bank.nbytes, "host": self._host_bytes(), "disk": disk_bytes}
        stats.budgets = {"host": self.host_bytes}
        if self.device_bytes is not None:
            stats.budgets["device"] = self.device_bytes
        return stats

    def _leave(self, place: Place) -> None:
        if place.state == "resident":
            self.bank.remove(place.stack.key)
        place.state = "absent"

    def _beside(self) -> list[Place]:
        """Those whose host copy takes memory of its own."""
        copied = self.bank.device.type != "cpu"
        return [p for p in self._places.values() if p.host is not None and (copied or not p.has_room)]

    def _host_bytes(self) -> int:
        return sum(place.stack.nbytes for place in self._beside())

    def _trim(self) -> None:
        """Drop host copies until they keep within their budget: those that never could, then by use."""
        for place in self._beside():
            if place.stack.nbytes > self.host_bytes:
                place.host = None
        for place in self._beside():
            if self._host_bytes() <= self.host_bytes:
                break
            place.host = None
            self.counts.evictions["host"] += 1
