"""Which replica takes a request: one that has its conversation or its stacks, as long as it keeps up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

from server.fleet.wish import Wish

BOUND = 1.25
"""Times the mean load that no replica exceeds for what it has (c of bounded loads, Mirrokni et al. 2016)."""
SLACK = 4
"""Requests that a replica may have whatever the mean: so few more in a batch cost less than a prompt."""
FEW = 50
"""Requests that say nothing of shares: as if so many had asked for no stack."""
REMEMBERED = 2000
"""Requests over which a stack's share is counted; then all counts are halved."""


@dataclass(frozen=True)
class Candidate:
    """A replica as the request router sees it.

    Attributes:
        load: requests that it has.
        device, host: domains whose stacks are on its device; in its host memory.
    """

    name: str
    load: int
    device: Set[str] = frozenset()
    host: Set[str] = frozenset()


def bound(loads: Sequence[int]) -> int:
    """Requests that a replica of a fleet with these loads may come to have for what it has."""
    mean = (sum(loads) + 1) / max(1, len(loads))
    return max(SLACK, math.ceil(BOUND * mean))


class Placement:
    """Remembers how often stacks are asked for: a hot one gets more copies before its replica is full.

    Args:
        floor: False leaves that out.
    """

    def __init__(self, floor: bool = True) -> None:
        self._floor = floor
        self._asked: Counter[str] = Counter()
        self._requests = 0

    def order(self, wish: Wish, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
        """Groups of them, the best first; of a group the least loaded one is meant. None is left out.

        A replica that the client named is alone in the first. Otherwise those within the bound come first: of
        them the one that has the conversation, then those with most of the stacks; where a stack has fewer
        copies than its share of requests times the replicas, any of them.
        """
        if named := [one for one in candidates if one.name == wish.replica]:
            return _parted(named, candidates)
        most = bound([one.load for one in candidates])
        within = [one for one in candidates if one.load < most]
        short = self._floor and self._is_short(wish, candidates)
        if last := [one for one in within if one.name == wish.last]:
            return _parted(last, within, candidates)
        if short:
            return _parted(within, candidates)

        def has(one: Candidate) -> tuple[int, int]:
            there = sum(stack in one.device or stack in one.host for stack in wish.stacks)
            return there, sum(stack in one.device for stack in wish.stacks)

        scores = [has(one) for one in within]
        best = max(scores, default=None)
        with_most = [one for one, score in zip(within, scores, strict=True) if score == best]
        return _parted(with_most, within, candidates)

    def _is_short(self, wish: Wish, candidates: Sequence[Candidate]) -> bool:
        """Whether one of its stacks has fewer copies than its floor; the request counts from now on."""
        self._requests += 1
        self._asked.update(wish.stacks)
        if self._requests >= REMEMBERED:
            self._requests //= 2
            self._asked = Counter({stack: count // 2 for stack, count in self._asked.items() if count > 1})

        def copies(stack: str) -> int:
            return sum(stack in one.device or stack in one.host for one in candidates)

        def floor(stack: str) -> int:
            return math.floor(len(candidates) * self._asked[stack] / (self._requests + FEW))

        return any(copies(stack) < floor(stack) for stack in wish.stacks)


def _parted(*groups: Sequence[Candidate]) -> list[list[Candidate]]:
    """Each group without those of the groups before it; the empty ones left out."""
    parted: list[list[Candidate]] = []
    seen: set[str] = set()
    for group in groups:
        parted.append([one for one in group if one.name not in seen])
        seen.update(one.name for one in group)
    return [group for group in parted if group]
