"""Replicas behind a router, simulated event by event.

A heap of the replicas' next events is the whole machinery. SimPy's processes would have to be interrupted in
the middle of a wait whenever a request joins a batch; a replica that says when it acts next reads better.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.scaling.profile import Profile
from benchmarks.scaling.replica import Replica, Room
from benchmarks.scaling.requests import Request, domain_names
from benchmarks.scaling.routers import ROUTERS


@dataclass(frozen=True)
class Run:
    """What a simulation left behind.

    Attributes:
        requests: all of them, ended.
        replicas: with their gaps between tokens, loads and busy seconds.
        end: when the last request arrived.
    """

    requests: Sequence[Request]
    replicas: Sequence[Replica]
    end: float


def simulate(
    requests: Sequence[Request],
    domains: int,
    profile: Profile,
    room: Room,
    replicas: int,
    router: str,
    seed: int,
) -> Run:
    """Every request, in order of arrival, goes to the replica that the router chooses at that moment.

    Each replica begins with the most popular stacks that it has room for, as if it had run for long.

    Args:
        requests: of compositions of `domains`, fresh ones; what becomes of them is written into them.
        router: a name of `ROUTERS`.
    """
    fleet = [Replica(profile, room) for _ in range(replicas)]
    for replica in fleet:
        replica.stacks.begin_with(reversed(domain_names(min(domains, room.device + room.host))))
    chooser = ROUTERS[router](fleet, seed)
    events: list[tuple[float, int]] = []

    def advance(until: float) -> None:
        while events and events[0][0] <= until:
            when, number = heapq.heappop(events)
            if fleet[number].next == when:  # else it has been asked to come earlier meanwhile
                fleet[number].proceed(when)
                note(number)

    def note(number: int) -> None:
        if fleet[number].next < math.inf:
            heapq.heappush(events, (fleet[number].next, number))

    for request in requests:
        advance(request.arrival)
        number = chooser.choose(request)
        fleet[number].add(request, request.arrival)
        note(number)
    advance(math.inf)
    return Run(requests, fleet, requests[-1].arrival)


def in_turn(
    requests: Iterable[Request], profile: Profile, room: Room, at_once: int, packed: Iterable[str] = ()
) -> Run:
    """One replica that always has `at_once` requests: the next arrives as one ends.

    Args:
        packed: stacks that were on the device before, one after another; the last ones still are.
    """
    todo, begun = deque(requests), []
    replica = Replica(profile, room)
    replica.stacks.begin_with(packed)
    now = 0.0
    while todo or replica.load:
        while todo and replica.load < at_once:
            request = todo.popleft()
            request.arrival = now
            replica.add(request, now)
            begun.append(request)
        now = replica.next
        replica.proceed(now)
    return Run(begun, [replica], now)
