"""Percentiles and intervals of simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.scaling.figures import Figures, estimate, over_seeds, weighted
from benchmarks.scaling.lengths import lengths
from benchmarks.scaling.replica import Room
from benchmarks.scaling.requests import Traffic
from benchmarks.scaling.simulation import simulate
from brainstacks.errors import ConfigError
from tests.benchmarks.scaling.fleets import profile


def test_a_weighted_percentile_is_that_of_the_values_written_out() -> None:
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([1, 5, 4])
    written = np.repeat(values, weights)
    for share in (0.1, 0.5, 0.9, 0.95):
        assert weighted(values, weights, share) == np.quantile(written, share, method="inverted_cdf")
    assert math.isnan(weighted(np.array([]), np.array([]), 0.5))


def test_an_interval_is_students() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found.value == 2.0
    assert found.interval == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))


def test_one_seed_has_no_interval() -> None:
    with pytest.raises(ConfigError, match="1 seeds give no interval here; take 2 to 10"):
        over_seeds([Figures(*[0.0] * 11)])


def test_a_fleet_that_keeps_up_generates_what_it_is_asked_for() -> None:
    asked = Traffic(10, rate=2.0, turns=1.0).requests(1500, lengths(), seed=0)
    run = simulate(asked, 10, profile(), Room(10, 0), 2, "two choices", seed=0)
    found = Figures.of(run)
    assert found.kept_up == pytest.approx(1.0, abs=0.05)
    assert found.hit_rate == 1.0
    assert found.loads == 0.0
    assert 0 < found.first_p50 <= found.first_p95
    assert profile().decode(1, 0, 0) <= found.gap_p50 <= found.gap_p95
    assert found.imbalance >= 1.0


def test_a_fleet_that_cannot_keep_up_says_so() -> None:
    asked = Traffic(10, rate=40.0, turns=1.0).requests(1500, lengths(), seed=0)
    assert Figures.of(simulate(asked, 10, profile(), Room(10, 0), 1, "random", seed=0)).kept_up < 0.6
