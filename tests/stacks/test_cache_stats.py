"""Counters of the stack cache: what was counted is what is shown."""

from __future__ import annotations

from brainstacks.stacks.cache_stats import LOAD_SECONDS, CacheStats


def test_everything_counted_is_shown_by_tier_and_by_bucket() -> None:
    stats = CacheStats()
    stats.acquired(hits=2, misses=1)
    stats.loaded("disk", LOAD_SECONDS[0])  # a bound belongs to its bucket
    stats.loaded("host", LOAD_SECONDS[0] + 1e-6)
    stats.loaded("disk", 2 * LOAD_SECONDS[-1])
    assert (stats.hits, stats.misses) == (2, 1)
    assert stats.loads == {"host": 1, "disk": 2}
    assert stats.load_seconds == [1, 1, *[0] * (len(LOAD_SECONDS) - 2), 1]
    assert stats.load_seconds_sum == 2 * LOAD_SECONDS[0] + 1e-6 + 2 * LOAD_SECONDS[-1]
