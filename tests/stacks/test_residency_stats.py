"""Counters of the residency: what was counted is what is shown."""

from __future__ import annotations

import threading

from brainstacks.stacks.residency_stats import LOAD_SECONDS, ResidencyCounters


def test_everything_counted_is_shown_by_tier_and_by_bucket() -> None:
    counters = ResidencyCounters()
    counters.acquired(hits=2, misses=1)
    counters.loaded("disk", LOAD_SECONDS[0])  # a bound belongs to its bucket
    counters.loaded("host", LOAD_SECONDS[0] + 1e-6)
    counters.loaded("disk", 2 * LOAD_SECONDS[-1])
    counters.evicted("device")
    stats = counters.stats({"device": 5}, {"host": 6}, waiting=7)
    assert (stats.hits, stats.misses, stats.waiting) == (2, 1, 7)
    assert stats.loads == {"host": 1, "disk": 2}
    assert stats.evictions == {"device": 1, "host": 0}
    assert stats.load_seconds == (1, 1, *[0] * (len(LOAD_SECONDS) - 2), 1)
    assert stats.load_seconds_sum == 2 * LOAD_SECONDS[0] + 1e-6 + 2 * LOAD_SECONDS[-1]
    assert (stats.bytes, stats.budgets) == ({"device": 5}, {"host": 6})


def test_no_count_is_lost_between_threads() -> None:
    counters = ResidencyCounters()

    def count() -> None:
        for _ in range(500):
            counters.acquired(1, 2)
            counters.loaded("disk", 0.5)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = counters.stats({}, {}, 0)
    assert (stats.hits, stats.misses, stats.loads["disk"], stats.load_seconds_sum) == (2000, 4000, 2000, 1000)
