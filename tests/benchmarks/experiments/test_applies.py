"""What the response alone costs is told as far as its interval allows."""

from __future__ import annotations

import pytest

from benchmarks.experiments import applies
from training.evaluation.intervals import Estimate


@pytest.mark.parametrize(
    ("interval", "told"),
    [
        ((0.005, 0.015), "routed that is under 0.02."),
        ((0.013, 0.022), "routed that cannot be told from 0.02."),
        ((0.02, 0.03), "routed that is not under 0.02."),
    ],
)
def test_the_interval_decides_whether_the_bound_is_kept(interval: tuple[float, float], told: str) -> None:
    costs = dict.fromkeys(applies.USES, Estimate(0.0, (-1.0, 1.0)))
    verdict = applies._verdict({**costs, "routed": Estimate(sum(interval) / 2, interval)})
    assert verdict.endswith(told)
