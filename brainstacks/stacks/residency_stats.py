"""What the residency has done so far, and what its tiers hold. No torch here."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Tier = Literal["device", "host", "disk"]

LOAD_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of load times, in seconds; one bucket more holds what took longer."""


@dataclass(frozen=True)
class ResidencyStats:
    """One moment of the residency.

    Attributes:
        bytes: tier -> bytes of stacks: on the device and in host memory as packed, on disk as files.
        budgets: tier -> most bytes that it may hold; a tier without a limit is left out.
        loads: tier that a stack came from -> stacks brought to the device.
        evictions: tier that a stack had to leave -> how many.
        hits, misses: stacks that were, and were not, on the device when their request came.
        load_seconds: loads per bucket of `LOAD_SECONDS`, not cumulated.
        load_seconds_sum: seconds that all loads took together.
        waiting: requests that wait for room on the device.
    """

    bytes: Mapping[Tier, int]
    budgets: Mapping[Tier, int]
    loads: Mapping[Tier, int] = field(default_factory=lambda: {"host": 0, "disk": 0})
    evictions: Mapping[Tier, int] = field(default_factory=lambda: {"device": 0, "host": 0})
    hits: int = 0
    misses: int = 0
    load_seconds: tuple[int, ...] = (0,) * (len(LOAD_SECONDS) + 1)
    load_seconds_sum: float = 0.0
    waiting: int = 0


class ResidencyCounters:
    """Counts, on any thread, what `ResidencyStats` shows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loads: Counter[Tier] = Counter({"host": 0, "disk": 0})
        self._evictions: Counter[Tier] = Counter({"device": 0, "host": 0})
        self._hits = 0
        self._misses = 0
        self._seconds = [0] * (len(LOAD_SECONDS) + 1)
        self._seconds_sum = 0.0

    def acquired(self, hits: int, misses: int) -> None:
        with self._lock:
            self._hits += hits
            self._misses += misses

    def loaded(self, source: Tier, seconds: float) -> None:
        with self._lock:
            self._loads[source] += 1
            self._seconds[bisect_left(LOAD_SECONDS, seconds)] += 1
            self._seconds_sum += seconds

    def evicted(self, tier: Tier) -> None:
        with self._lock:
            self._evictions[tier] += 1

    def stats(self, bytes: Mapping[Tier, int], budgets: Mapping[Tier, int], waiting: int) -> ResidencyStats:
        """The counts so far, with the given gauges."""
        with self._lock:
            return ResidencyStats(
                bytes,
                budgets,
                dict(self._loads),
                dict(self._evictions),
                self._hits,
                self._misses,
                tuple(self._seconds),
                self._seconds_sum,
                waiting,
            )
