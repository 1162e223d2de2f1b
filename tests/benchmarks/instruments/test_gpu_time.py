"""A launch takes as long as what bounds it most, and one beside hides behind what it runs beside."""

from __future__ import annotations

import pytest

from benchmarks.instruments.gpu_time import FAST, H200, Assumed, Launch, seconds

ASSUMED = Assumed(floor=1e-6, trip=1e-6, processor=5e10)
SECOND = H200.bandwidth * ASSUMED.share
"""Bytes that take one."""


@pytest.mark.parametrize(
    ("launch", "bound", "takes"),
    [
        (Launch("others", "", 0.0), "floor", 1e-6),
        (Launch("others", "", SECOND, trips=3), "memory", 1.0),
        (Launch("linears", "", 0.0, flops=H200.flops * ASSUMED.share), "products", 1.0),
        (Launch("up", "", 0.0, busiest=2 * ASSUMED.processor), "processor", 2.0),
        (Launch("down", "", 0.0, trips=5), "waiting", 5e-6),
    ],
)
def test_a_launch_takes_as_long_as_what_bounds_it_most(launch: Launch, bound: str, takes: float) -> None:
    assert launch.bound(H200, ASSUMED) == bound
    assert launch.seconds(H200, ASSUMED) == pytest.approx(takes)


def test_a_launch_beside_shares_the_memory_and_hides_its_waits() -> None:
    down, linear, up = (
        Launch("down", "", SECOND, trips=2e6),
        Launch("linears", "", 3 * SECOND),
        Launch("up", "", SECOND),
    )
    assert seconds([down, linear, up], H200, ASSUMED, beside=False) == pytest.approx(2 + 3 + 1)
    assert seconds([down, linear, up], H200, ASSUMED) == pytest.approx(4 + 1), "by bytes: 1 + 3, and then 1"
    long = Launch("down", "", 0.0, trips=9e6)
    assert seconds([long, linear, up], H200, ASSUMED) == pytest.approx(9 + 1), "the longer one counts"


def test_a_kernel_at_its_best_waits_for_nothing() -> None:
    slow = Launch("up", "", SECOND, busiest=1e15, trips=1e9)
    assert slow.without_waits().seconds(H200, FAST) == pytest.approx(SECOND / (H200.bandwidth * FAST.share))
