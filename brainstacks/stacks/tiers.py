"""Device, host, disk: which stacks are where, within byte budgets, and who gets room next.

A lease takes the room for all its stacks in one go, or waits and holds nothing. Two leases can therefore
never each hold what the other waits for. Those that wait are served first come, first served. What the
device holds is decided under a lock; the bytes are moved by one loader thread, in the order of the decisions,
so that removals come before the additions that they make room for and no budget is ever exceeded.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch

from brainstacks.errors import BrainstacksError, EngineFailure, InvalidRequest, Unavailable
from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import PackedStack, StackTensors
from brainstacks.stacks.lease import Lease, Resident, StackKey
from brainstacks.stacks.loader import Loader
from brainstacks.stacks.residency_stats import ResidencyCounters, ResidencyStats, Tier

log = logging.getLogger(__name__)

MAX_OVERTAKEN = 32
"""So many leases whose stacks are on the device pass the first one in the queue; then they queue as well.
Otherwise requests for what is there could follow one another for ever, and nothing would leave."""


@dataclass(eq=False)
class _Slot:
    """A stack's place on the device: reserved, then loaded.

    Attributes:
        holds: granted leases that use it; it cannot leave before they have.
    """

    resident: Resident
    loaded: bool = False
    holds: int = 0


class Tiers:
    """Args:
    bank: the device.
    read: a stack's tensors from disk; raises CorruptBlob.
    device_bytes: most bytes that the bank may take; None for no limit.
    host_bytes: most bytes of packed stacks in host memory.
    """

    def __init__(
        self,
        bank: StackBank,
        read: Callable[[Resident], StackTensors],
        device_bytes: int | None,
        host_bytes: int,
    ) -> None:
        self.bank = bank
        self.device_bytes = device_bytes
        self.host_bytes = host_bytes
        self._read = read
        self._counters = ResidencyCounters()
        self._loader = Loader()
        self._lock = threading.Lock()  # guards what follows; held for bookkeeping only
        self._device: OrderedDict[StackKey, _Slot] = OrderedDict()  # least recently used first
        self._host: OrderedDict[StackKey, PackedStack] = OrderedDict()  # likewise; only the loader adds
        self._served: frozenset[StackKey] = frozenset()
        self._pinned: Mapping[StackKey, Resident] = {}
        self._references: Counter[StackKey] = Counter()  # by leases of any state
        self._waiting: deque[Lease] = deque()  # for room, first come first
        self._loading: dict[Lease, None] = {}  # granted, not ready; in order
        self._failures: dict[StackKey, str] = {}  # what the last load of a served version failed of
        self._overtaken = 0

    # --- what may stay ----------------------------------------------------------------------------

    def serve(self, residents: Collection[Resident], pinned: Collection[Resident] = ()) -> None:
        """Keep copies of these, and of what leases use; all others go. Those `pinned` stay on the device."""
        with self._lock:
            self._served = frozenset(resident.key for resident in residents)
            self._pinned = {resident.key: resident for resident in pinned}
            self._failures = {key: text for key, text in self._failures.items() if key in self._served}
            self._drop([*self._device, *self._host])
            changed = self._grant_waiting()
        _notify(changed)

    def tier(self, key: StackKey) -> Tier:
        with self._lock:
            slot = self._device.get(key)
            if slot is not None and slot.loaded:
                return "device"
            return "host" if key in self._host else "disk"

    def failures(self) -> dict[StackKey, str]:
        """Served versions whose last load failed, and why."""
        with self._lock:
            return dict(self._failures)

    def stats(self, disk_bytes: int) -> ResidencyStats:
        with self._lock:
            held: dict[Tier, int] = {
                "device": self.bank.nbytes,
                "host": sum(packed.nbytes for packed in self._host.values()),
                "disk": disk_bytes,
            }
            waiting = len(self._waiting)
        budgets: dict[Tier, int] = {"host": self.host_bytes}
        if self.device_bytes is not None:
            budgets["device"] = self.device_bytes
        return self._counters.stats(held, budgets, waiting)

    def settle(self) -> None:
        """Wait until every move that was decided so far has been made."""
        self._loader.submit(lambda: None).result()

    def later(self, job: Callable[[], None]) -> Future[None]:
        """Run `job` on the loader thread, after every move that was decided so far."""
        return self._loader.submit(job)

    # --- leases -----------------------------------------------------------------------------------

    def acquire(
        self, residents: Mapping[str, Resident], on_change: Callable[[], None] | None = None
    ) -> Lease:
        """Reserve room for these together; loads what is missing.

        Raises:
            InvalidRequest: they do not fit on the device, even alone.
        """
        with self._lock:
            error = self._misfit(residents.values())
            if error is not None:
                raise error
            lease = Lease(residents, on_change)
            self._references.update(lease.keys)
            slots = [self._device.get(key) for key in lease.keys]
            hits = sum(slot is not None and slot.loaded for slot in slots)
            self._counters.acquired(hits, len(slots) - hits)
            may_pass = not self._waiting or self._overtaken < MAX_OVERTAKEN
            if not slots or (None not in slots and may_pass):
                self._overtaken += bool(self._waiting and slots)
                self._grant(lease, ())
            else:
                self._waiting.append(lease)
                self._grant_waiting()
            return lease

    def prefetch(self, residents: Iterable[Resident]) -> list[Lease]:
        """Leases, one for each that has room without another leaving, or waiting longer."""
        leases = []
        with self._lock:
            for resident in residents:
                if not self._waiting and self._room_for((resident,)) == []:
                    lease = Lease({resident.domain: resident})
                    self._references.update(lease.keys)
                    self._grant(lease, ())
                    leases.append(lease)
        return leases

    def release(self, lease: Lease) -> None:
        """Undo `acquire` or `prefetch`, whatever the lease's state; once."""
        with self._lock:
            self._references -= Counter(lease.keys)
            if lease.granted:
                self._unhold(lease)
            elif lease in self._waiting:
                if lease is self._waiting[0]:
                    self._overtaken = 0
                self._waiting.remove(lease)
            self._drop(lease.keys)
            changed = self._grant_waiting()
        _notify(changed)

    def evict(self, key: StackKey) -> bool:
        """Make a stack leave the device, and wait until it has; False when a lease holds it there."""
        with self._lock:
            slot = self._device.get(key)
            if slot is None:
                return True
            if slot.holds:
                return False
            del self._device[key]
            done = self._loader.submit(partial(self._exchange, [slot], []))
        done.result()
        return True

    # --- decisions, under the lock ----------------------------------------------------------------

    def _misfit(self, residents: Iterable[Resident]) -> InvalidRequest | None:
        """Why these could never be on the device together, beside what is pinned there."""
        if self.device_bytes is None:
            return None
        chosen = {resident.key: resident.nbytes for resident in residents}
        beside = sum(r.nbytes for key, r in self._pinned.items() if key not in chosen)
        total = sum(chosen.values())
        if total + beside <= self.device_bytes or not chosen:
            return None
        names = ", ".join(domain for domain, _ in chosen)
        pinned = f" beside {beside} bytes of pinned stacks" if beside else ""
        return InvalidRequest(
            f"the stacks {names} take {total} bytes on the device{pinned}; --device-stack-bytes is "
            f"{self.device_bytes}; ask for fewer of them (routing.top), or start the server with more room",
            param="routing",
        )

    def _room_for(self, residents: Iterable[Resident]) -> list[StackKey] | None:
        """What has to leave the device so that these fit, least recently used first; None: they must wait."""
        if self.device_bytes is None:
            return []
        wanted = {resident.key: resident.nbytes for resident in residents}
        used = sum(slot.resident.nbytes for slot in self._device.values())
        excess = used + sum(n for key, n in wanted.items() if key not in self._device) - self.device_bytes
        victims = []
        for key, slot in self._device.items():
            if excess <= 0:
                break
            if not slot.holds and key not in wanted and key not in self._pinned:
                victims.append(key)
                excess -= slot.resident.nbytes
        return victims if excess <= 0 else None

    def _grant_waiting(self) -> list[Lease]:
        """Grant what has room, in order; the leases that became ready or failed."""
        changed = []
        while self._waiting:
            lease = self._waiting[0]
            error = self._misfit(lease.residents.values())  # something may have been pinned since
            victims = self._room_for(lease.residents.values()) if error is None else []
            if victims is None:
                break
            self._waiting.popleft()
            self._overtaken = 0
            if error is not None:
                lease.settle(error)
            else:
                self._grant(lease, victims)
            if not lease.missing or error is not None:
                changed.append(lease)
        return changed

    def _grant(self, lease: Lease, victims: Sequence[StackKey]) -> None:
        leaving = [self._device.pop(key) for key in victims]
        entering = []
        for resident in lease.residents.values():
            slot = self._device.get(resident.key)
            if slot is None:
                slot = self._device[resident.key] = _Slot(resident)
                entering.append(slot)
            elif slot.loaded:
                lease.missing.discard(resident.key)
            slot.holds += 1
            self._device.move_to_end(resident.key)
        lease.granted = True
        if lease.missing:
            self._loading[lease] = None
        else:
            lease.settle()
        if leaving or entering:
            self._loader.submit(partial(self._exchange, leaving, entering))

    def _unhold(self, lease: Lease) -> None:
        lease.granted = False
        self._loading.pop(lease, None)
        for key in lease.keys:
            slot = self._device.get(key)
            if slot is not None:
                slot.holds -= 1
                self._device.move_to_end(key)

    def _drop(self, keys: Iterable[StackKey]) -> None:
        """Forget those that are neither served nor named by a lease."""
        unused = {key for key in keys if key not in self._served and not self._references[key]}
        for key in unused:
            self._host.pop(key, None)
        leaving = [slot for slot in (self._device.pop(key, None) for key in unused) if slot is not None]
        if leaving:
            self._loader.submit(partial(self._exchange, leaving, []))

    # --- moves, on the loader thread --------------------------------------------------------------

    def _exchange(self, leaving: Sequence[_Slot], entering: Sequence[_Slot]) -> None:
        with self._lock:  # what comes from host memory makes room there for what goes to it
            packed = {slot: self._host.pop(slot.resident.key, None) for slot in entering}
        for slot in leaving:
            if slot.loaded:  # others were given up before they had come
                self._leave(slot.resident)
        for slot in entering:
            self._add(slot, packed[slot])

    def _leave(self, resident: Resident) -> None:
        """Device to host memory, where it is still wanted and fits there."""
        key = resident.key
        with self._lock:
            wanted = key in self._served or self._references[key] > 0
            if wanted:
                self._counters.evicted("device")
            kept = wanted and key not in self._device and self._make_room_on_host(resident.nbytes)
        if not kept:
            self.bank.remove(key)
            return
        packed = self.bank.take(key)
        with self._lock:
            self._host[key] = packed
            self._drop([key])  # it may not be wanted any more

    def _make_room_on_host(self, nbytes: int) -> bool:
        """Under the lock: drop the least recently used copies until there is room; False: there cannot be."""
        if nbytes > self.host_bytes:
            return False
        while sum(packed.nbytes for packed in self._host.values()) + nbytes > self.host_bytes:
            self._host.popitem(last=False)
            self._counters.evicted("host")
        return True

    def _add(self, slot: _Slot, packed: PackedStack | None) -> None:
        """Host or disk to device."""
        key = slot.resident.key
        with self._lock:
            if self._device.get(key) is not slot:
                return  # it was given up before its turn
        error = self._load(slot.resident, packed)
        changed: list[Lease] = []
        with self._lock:
            expected = self._device.get(key) is slot
            if expected:
                changed = self._arrived(slot, error)
        if not expected and error is None:  # given up while it was being loaded
            self.bank.remove(key)
        _notify(changed)

    def _load(self, resident: Resident, packed: PackedStack | None) -> BrainstacksError | None:
        started = perf_counter()
        try:
            self.bank.add(resident.key, packed if packed is not None else self._read(resident))
        except BrainstacksError as error:
            return error
        except (torch.OutOfMemoryError, MemoryError):
            return Unavailable(f"the device has no memory for the stack {resident.domain}; retry later")
        except Exception:
            log.exception("%s version %d could not be loaded", resident.domain, resident.version)
            return EngineFailure(
                f"the stack {resident.domain} could not be loaded; the server's log says why"
            )
        self._counters.loaded("disk" if packed is None else "host", perf_counter() - started)
        return None

    def _arrived(self, slot: _Slot, error: BrainstacksError | None) -> list[Lease]:
        """Under the lock: a load has ended; the leases that became ready or failed."""
        key = slot.resident.key
        if error is None:
            slot.loaded = True
            self._failures.pop(key, None)
        else:
            del self._device[key]
            self._failures[key] = error.message
        changed = []
        for lease in [lease for lease in self._loading if key in lease.missing]:
            lease.missing.discard(key)
            if error is not None:
                self._unhold(lease)
                lease.settle(error)
            elif not lease.missing:
                del self._loading[lease]
                lease.settle()
            else:
                continue
            changed.append(lease)
        return changed + self._grant_waiting()


def _notify(leases: Iterable[Lease]) -> None:
    """Without the lock: whoever is told may want to ask."""
    for lease in leases:
        lease.notify()
