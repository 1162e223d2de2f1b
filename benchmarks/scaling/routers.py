"""Which replica a request goes to. A router sees loads and stacks as they are: reports take no time."""

from __future__ import annotations

import hashlib
import math
import random
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from benchmarks.scaling.fleet import Fleet
from benchmarks.scaling.requests import Request

BOUND = 1.25
"""Times the mean load that no replica exceeds by affinity (c of bounded loads, Mirrokni et al. 2016)."""
REMEMBERED = 2000
"""Requests over which a stack's share is counted; then all counts are halved."""


class Router(ABC):
    """Args:
    seed: of what is left to chance.
    """

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self.fleet = fleet
        self.replicas = fleet.replicas
        self.draw = random.Random(seed)

    @abstractmethod
    def choose(self, request: Request) -> int:
        """The replica's number."""

    def least_loaded(self, among: Sequence[int]) -> int:
        """Of equal ones any."""
        least = min(self.replicas[one].load for one in among)
        return self.draw.choice([one for one in among if self.replicas[one].load == least])

    def within_bound(self) -> list[int]:
        """Those whose load with one more request is at most ceil(BOUND * mean); never none."""
        total = sum(replica.load for replica in self.replicas) + 1
        most = math.ceil(BOUND * total / len(self.replicas))
        return [number for number, replica in enumerate(self.replicas) if replica.load < most]


class Random(Router):
    def choose(self, request: Request) -> int:
        return self.draw.randrange(len(self.replicas))


class RoundRobin(Router):
    _last = -1

    def choose(self, request: Request) -> int:
        self._last = (self._last + 1) % len(self.replicas)
        return self._last


class TwoChoices(Router):
    """The less loaded of two drawn at random: what Ray Serve does by default."""

    def choose(self, request: Request) -> int:
        return self.least_loaded(self.draw.sample(range(len(self.replicas)), min(2, len(self.replicas))))


class Hashed(Router):
    """Consistent hashing of the composition with bounded loads: nobody has to report its stacks."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        super().__init__(fleet, seed)
        self._orders: dict[int, list[int]] = {}

    def choose(self, request: Request) -> int:
        order = self._orders.get(request.composition)
        if order is None:  # rendezvous: each composition has its own order of the replicas
            order = sorted(range(len(self.replicas)), key=lambda one: _hash(request.composition, one))
            self._orders[request.composition] = order
        within = set(self.within_bound())
        return next(one for one in order if one in within)


class Affinity(Router):
    """Where most seconds of loading and reading are spared, among those within the bound.

    A stack that has fewer copies than its floor, its share of recent requests times the replicas, goes to the
    least loaded instead: a hot stack is on several replicas before one of them is full.
    """

    floor = True

    def __init__(self, fleet: Fleet, seed: int) -> None:
        super().__init__(fleet, seed)
        self._asked: Counter[int] = Counter()
        self._requests = 0
        self._last: dict[int, int] = {}  # conversation -> where its last turn went

    def choose(self, request: Request) -> int:
        within = self.within_bound()
        if self.floor and self._is_short(request):
            chosen = self.least_loaded(within)
        else:
            spared = self._spared(request)
            most = max(spared.get(number, 0.0) for number in within)
            chosen = self.least_loaded([number for number in within if spared.get(number, 0.0) == most])
        self._last[request.conversation] = chosen
        return chosen

    def _spared(self, request: Request) -> dict[int, float]:
        """Replica -> seconds, where there are any."""
        profile = self.fleet.profile
        spared: dict[int, float] = defaultdict(float)
        for stack in request.stacks:
            for number in self.fleet.holders[stack]:
                spared[number] += profile.loads[profile.source]
        if (last := self._last.get(request.conversation)) is not None:
            spared[last] += profile.prefill(request.history, len(request.stacks))
        return spared

    def _is_short(self, request: Request) -> bool:
        """Whether one of its stacks has fewer copies than its floor; the request counts from now on."""
        self._requests += 1
        self._asked.update(request.stacks)
        if self._requests >= REMEMBERED:
            self._requests //= 2
            self._asked = Counter({stack: count // 2 for stack, count in self._asked.items() if count > 1})
        for stack in request.stacks:
            floor = math.floor(len(self.replicas) * self._asked[stack] / self._requests)
            if len(self.fleet.holders[stack]) < floor:
                return True
        return False


class AffinityAlone(Affinity):
    """The same without the floor."""

    floor = False


class Sticky(AffinityAlone):
    """A conversation to where it was, whatever stacks are there: what a balancer can do by a cookie."""

    def _spared(self, request: Request) -> dict[int, float]:
        last = self._last.get(request.conversation)
        return {} if last is None else {last: 1.0}


ROUTERS: dict[str, Callable[[Fleet, int], Router]] = {
    "random": Random,
    "round robin": RoundRobin,
    "two choices": TwoChoices,
    "sticky": Sticky,
    "hashed": Hashed,
    "affinity, no floor": AffinityAlone,
    "affinity": Affinity,
}


def _hash(composition: int, replica: int) -> bytes:
    return hashlib.blake2b(f"{composition}/{replica}".encode(), digest_size=8).digest()
