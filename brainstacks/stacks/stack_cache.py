"""The stack cache: which versions are served, who holds them on the device, and who gets room next.

A lease takes the room for all its stacks in one go, or waits and holds nothing. Two leases can therefore
never each hold what the other waits for. Those that wait are served first come, first served. A version that
a lease names stays until the lease is released, whatever is served meanwhile.

Decisions are made under a lock and are bookkeeping; stacks are read and packed by one loader thread, so no
step and no decision ever waits for a load.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from time import perf_counter

from brainstacks.errors import BrainstacksError, DomainNotFound, InvalidRequest
from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import PackedStack, StackTensors
from brainstacks.stacks.cache_stats import CacheStats, Tier
from brainstacks.stacks.lease import Lease, ServedStack, StackKey
from brainstacks.stacks.loader import Loader, load_failed
from brainstacks.stacks.places import Place, Places

MAX_OVERTAKEN = 32
"""So many leases whose stacks are on the device pass the first one in the queue; then they queue as well.
Otherwise requests for what is there could follow one another for ever, and nothing would leave."""


class StackCache:
    """Args:
    bank: the device.
    read: a stack from disk, or packed already; raises CorruptBlob.
    device_bytes, host_bytes: see `Places`.
    """

    def __init__(
        self,
        bank: StackBank,
        read: Callable[[ServedStack], StackTensors | PackedStack],
        device_bytes: int | None = None,
        host_bytes: int = 0,
    ) -> None:
        self.bank = bank
        bank.make_room_with(self._make_room)
        self._read = read
        self._loader = Loader()
        self._lock = threading.Lock()  # guards what follows; held for bookkeeping only
        self._serving: Mapping[str, ServedStack] = {}
        self._pinned: frozenset[str] = frozenset()
        self._kept: Sequence[ServedStack] = ()  # of `_serving`, what is pinned
        self._places = Places(bank, device_bytes, host_bytes)
        self._leases: dict[Lease, None] = {}  # all that are not released, in the order of arrival
        self._waiting: deque[Lease] = deque()  # those of them that wait for room
        self._overtaken = 0

    # --- what is served ---------------------------------------------------------------------------

    @property
    def device_bytes(self) -> int | None:
        """Most bytes of stacks on the device."""
        return self._places.device_bytes

    @property
    def serving(self) -> Mapping[str, ServedStack]:
        """Domain -> the version that new leases get."""
        return self._serving

    @property
    def pinned(self) -> frozenset[str]:
        """Domains whose served version never leaves the device."""
        return self._pinned

    def served(self, domain: str) -> ServedStack:
        """Raises DomainNotFound."""
        if domain not in self._serving:
            served = ", ".join(self._serving) or "none"
            raise DomainNotFound(f"no domain {domain!r} is served; served are: {served}")
        return self._serving[domain]

    def serve(self, serving: Mapping[str, ServedStack], pinned: Collection[str] = ()) -> None:
        """Keep copies of these, and of what leases name; all others go."""
        with self._lock:
            self._serving, self._pinned = dict(serving), frozenset(pinned)
            self._kept = [serving[domain] for domain in pinned]
            for stack in serving.values():
                self._places.of(stack)
            self._sweep()
            changed = self._grant_waiting()
        _notify(changed)

    def tier(self, domain: str) -> Tier:
        """Where the served version of `domain` is; a domain that is not served is on disk."""
        with self._lock:
            return self._places.of(self._serving[domain]).tier if domain in self._serving else "disk"

    def in_use(self, domain: str) -> int:
        """Leases that name any version of `domain`."""
        with self._lock:
            return sum(domain in lease.stacks for lease in self._leases)

    def failures(self) -> dict[StackKey, str]:
        """Served versions whose last load failed, and why."""
        with self._lock:
            return self._places.failures(self._serving.values())

    def when_gone(self, key: StackKey, job: Callable[[], object]) -> None:
        """Call `job` when nobody serves or names that version any more, which may be at once."""
        with self._lock:
            if (place := self._places.get(key)) is not None:
                place.gone = job
        if place is None:
            job()

    def stats(self, disk_bytes: int) -> CacheStats:
        with self._lock:
            stats = self._places.stats(disk_bytes)
            stats.waiting = len(self._waiting)
            stats.tiers = {domain: self._places.of(stack).tier for domain, stack in self._serving.items()}
            return stats

    def wait_for_loads(self) -> None:
        """Block until every load that was decided so far has ended."""
        self._loader.submit(lambda: None).result()

    # --- leases -----------------------------------------------------------------------------------

    def acquire(self, domains: Iterable[str], on_change: Callable[[], None] | None = None) -> Lease:
        """Fix the served version of each domain until `release`, and reserve room for all of them.

        Args:
            on_change: called once, on any thread, when the lease becomes ready or fails; not when it is ready
                already on return.

        Raises, and holds nothing:
            DomainNotFound: a domain is not served.
            InvalidRequest: they cannot be on the device together.
        """
        with self._lock:
            lease = Lease({domain: self.served(domain) for domain in domains}, on_change)
            if (error := self._misfit(lease)) is not None:
                raise error
            self._leases[lease] = None
            places = self._of(lease)
            hits = sum(place.state == "resident" for place in places)
            self._places.counts.acquired(hits, len(places) - hits)
            may_pass = not self._waiting or self._overtaken < MAX_OVERTAKEN
            if not places or (may_pass and all(place.has_room for place in places)):
                self._overtaken += bool(self._waiting and places)
                self._grant(lease, ())
            else:
                self._waiting.append(lease)
                self._grant_waiting()
            return lease

    def prefetch(self, stacks: Iterable[ServedStack]) -> list[Lease]:
        """Leases, one for each that has room without another leaving, or waiting longer."""
        leases = []
        with self._lock:
            for stack in stacks:
                lease = Lease({stack.domain: stack})
                if not self._waiting and self._victims(lease) == []:
                    self._leases[lease] = None
                    self._grant(lease, ())
                    leases.append(lease)
        return leases

    def release(self, lease: Lease) -> None:
        """Undo `acquire` or `prefetch`, whatever the lease's state; once."""
        with self._lock:
            del self._leases[lease]
            if lease.granted:
                self._give_up(lease)
            elif lease in self._waiting:
                if lease is self._waiting[0]:
                    self._overtaken = 0
                self._waiting.remove(lease)
            self._sweep()
            changed = self._grant_waiting()
        _notify(changed)

    def evict(self, domain: str) -> bool:
        """Make the served version of `domain` leave the device; False while a lease names it."""
        with self._lock:
            stack = self.served(domain)
            if any(stack.key in lease.keys for lease in self._leases):
                return False
            place = self._places.of(stack)
            if place.has_room:
                self._places.evict(place)
            return True

    # --- decisions, under the lock ----------------------------------------------------------------

    def _of(self, lease: Lease) -> list[Place]:
        return [self._places.of(stack) for stack in lease.stacks.values()]

    def _sweep(self) -> None:
        """Forget versions that are neither served nor named by a lease."""
        served = {stack.key for stack in self._serving.values()}
        for place in self._places.forget_all_but(served.union(*(lease.keys for lease in self._leases))):
            if place.gone is not None:
                self._loader.submit(place.gone)

    def _misfit(self, lease: Lease) -> InvalidRequest | None:
        return self._places.misfit(lease.stacks, self._kept)

    def _victims(self, lease: Lease) -> list[Place] | None:
        return self._places.victims(lease.stacks.values(), self._kept)

    def _grant_waiting(self) -> list[Lease]:
        """Grant what has room, in order; the leases that became ready or failed."""
        changed = []
        while self._waiting:
            lease = self._waiting[0]
            error = self._misfit(lease)  # something may have been pinned since
            victims = self._victims(lease) if error is None else []
            if victims is None:
                break
            self._waiting.popleft()
            self._overtaken = 0
            if error is not None:
                lease.end_wait(error)
            else:
                self._grant(lease, victims)
            if not lease.missing or error is not None:
                changed.append(lease)
        return changed

    def _grant(self, lease: Lease, victims: Sequence[Place]) -> None:
        places = self._of(lease)
        entering = [place for place in places if not place.has_room]
        for place in entering:
            place.state = "loading"
        for victim in victims:
            self._places.evict(victim)
        for place in places:
            self._places.hold(place, 1)
        lease.granted = True
        lease.missing = {place.stack.key for place in places if place.state != "resident"}
        if not lease.missing:
            lease.end_wait()
        for place in entering:
            self._loader.submit(partial(self._load, place))

    def _give_up(self, lease: Lease) -> None:
        lease.granted = False
        for place in self._of(lease):
            self._places.hold(place, -1)

    # --- loads, on the loader's thread ------------------------------------------------------------

    def _load(self, place: Place) -> None:
        with self._lock:
            if place.state != "loading":
                return  # it was given up before its turn, or has come meanwhile
            host = place.host
        started = perf_counter()
        there: PackedStack | None = None
        error: BrainstacksError | None = None
        try:
            packed = self.bank.pack(host or self._read(place.stack))
            there = self.bank.place(packed)
        except Exception as raised:
            error = load_failed(raised, *place.stack.key)
        with self._lock:
            if place.state != "loading":
                return  # it was given up meanwhile
            if there is not None:
                self._places.put(place, packed, there)
                self._places.counts.loaded("disk" if host is None else "host", perf_counter() - started)
            elif error is not None:
                place.state, place.host, place.problem = "failed", None, error.message
            changed = self._arrived(place, error) + self._grant_waiting()
        _notify(changed)

    def _make_room(self) -> bool:
        """The device has less room than its budget says: all idle stacks leave it. Whether there were any."""
        with self._lock:
            return self._places.evict_idle(self._kept)

    def _arrived(self, place: Place, error: BrainstacksError | None) -> list[Lease]:
        """The granted leases that became ready with this, or failed."""
        changed = []
        for lease in [one for one in self._leases if one.granted and place.stack.key in one.missing]:
            lease.missing.discard(place.stack.key)
            if error is not None:
                self._give_up(lease)
            if error is not None or not lease.missing:
                lease.end_wait(error)
                changed.append(lease)
        return changed


def _notify(leases: Iterable[Lease]) -> None:
    """Without the lock: whoever is told may want to ask."""
    for lease in leases:
        lease.notify()
