"""Which replica a request goes to.

A router sees loads and stacks as they are: reports take no time, and a stack that is being loaded is there.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.scaling.replica import Replica
from benchmarks.scaling.requests import Request
from server.fleet.placement import Candidate, Placement, bound
from server.fleet.wish import Wish


class Router(ABC):
    """Args:
    seed: of what is left to chance.
    """

    def __init__(self, replicas: Sequence[Replica], seed: int) -> None:
        self.replicas = replicas
        self.draw = random.Random(seed)

    @abstractmethod
    def choose(self, request: Request) -> int:
        """The replica's number."""

    def least_loaded(self, among: Sequence[int]) -> int:
        """Of equal ones any."""
        least = min(self.replicas[one].load for one in among)
        return self.draw.choice([one for one in among if self.replicas[one].load == least])


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
    """Consistent hashing of the composition, within the same bound as affinity: nobody reports its stacks."""

    def __init__(self, replicas: Sequence[Replica], seed: int) -> None:
        super().__init__(replicas, seed)
        self._orders: dict[int, list[int]] = {}

    def choose(self, request: Request) -> int:
        order = self._orders.get(request.composition)
        if order is None:  # rendezvous: each composition has its own order of the replicas
            order = sorted(range(len(self.replicas)), key=lambda one: _hash(request.composition, one))
            self._orders[request.composition] = order
        most = bound([one.load for one in self.replicas])
        return next(one for one in order if self.replicas[one].load < most)


class Affinity(Router):
    """As the server does, by its own `Placement`: the least loaded of the first group.

    Args:
        floor: as of `Placement`.
    """

    def __init__(self, replicas: Sequence[Replica], seed: int, floor: bool = True) -> None:
        super().__init__(replicas, seed)
        self._placement = Placement(floor)
        self._last: dict[int, str] = {}  # conversation -> the replica that had its last turn

    def choose(self, request: Request) -> int:
        candidates = [
            Candidate(str(number), one.load, one.stacks.there.keys(), one.stacks.host.keys())
            for number, one in enumerate(self.replicas)
        ]
        best, *_ = self._placement.order(self.wish(request), candidates)
        chosen = self.least_loaded([int(one.name) for one in best])
        self._last[request.conversation] = str(chosen)
        return chosen

    def wish(self, request: Request) -> Wish:
        return Wish(last=self._last.get(request.conversation), stacks=request.stacks)


class Sticky(Affinity):
    """A conversation to where it was, whatever stacks are there: what a balancer can do by a cookie."""

    def wish(self, request: Request) -> Wish:
        return Wish(last=self._last.get(request.conversation))


ROUTERS: dict[str, Callable[[Sequence[Replica], int], Router]] = {
    "random": Random,
    "round robin": RoundRobin,
    "two choices": TwoChoices,
    "sticky": Sticky,
    "hashed": Hashed,
    "affinity, no floor": partial(Affinity, floor=False),
    "affinity": Affinity,
}


def _hash(composition: int, replica: int) -> bytes:
    return hashlib.blake2b(f"{composition}/{replica}".encode(), digest_size=8).digest()
