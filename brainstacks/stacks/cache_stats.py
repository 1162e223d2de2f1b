"""What the stack cache has done so far, and what it holds. No torch here."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Tier = Literal["device", "host", "disk"]

LOAD_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of load times, in seconds; one bucket more holds what took longer."""


@dataclass
class CacheStats:
    """Counts since the start, and one moment's gauges.

    Attributes:
        bytes: tier -> bytes of stacks: on the device and in host memory as packed, on disk as files.
        budgets: tier -> most bytes that it may hold; a tier without a limit is left out.
        loads: tier that a stack came from -> stacks brought to the device.
        evictions: tier that a stack had to leave -> how many.
        hits, misses: stacks that were, and were not, on the device when their request came.
        load_seconds: loads per bucket of `LOAD_SECONDS`, not cumulated.
        load_seconds_sum: seconds that all loads took together.
        waiting: requests that wait for room on the device.
        tiers: served domain -> where its stack is.
    """

    bytes: Mapping[Tier, int] = field(default_factory=dict)
    budgets: Mapping[Tier, int] = field(default_factory=dict)
    loads: dict[Tier, int] = field(default_factory=lambda: {"host": 0, "disk": 0})
    evictions: dict[Tier, int] = field(default_factory=lambda: {"device": 0, "host": 0})
    hits: int = 0
    misses: int = 0
    load_seconds: list[int] = field(default_factory=lambda: [0] * (len(LOAD_SECONDS) + 1))
    load_seconds_sum: float = 0.0
    waiting: int = 0
    tiers: Mapping[str, Tier] = field(default_factory=dict)

    def acquired(self, hits: int, misses: int) -> None:
        self.hits += hits
        self.misses += misses

    def loaded(self, source: Tier, seconds: float) -> None:
        self.loads[source] += 1
        self.load_seconds[bisect_left(LOAD_SECONDS, seconds)] += 1
        self.load_seconds_sum += seconds
