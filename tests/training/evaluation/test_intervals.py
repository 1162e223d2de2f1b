"""Intervals: Wilson's against published figures, the bootstrap against what drawing records can give."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.evaluation.intervals import SAMPLES, Share, interval, resampled_nll


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)],
)
def test_wilsons_interval_is_newcombes_table(count: int, total: int, low: float, high: float) -> None:
    assert Share(count, total).interval == pytest.approx((low, high), abs=6e-5)


def test_a_share_of_nothing_says_nothing() -> None:
    nothing = Share(0, 0)
    assert math.isnan(nothing.value)
    assert nothing.interval == (0.0, 1.0)
    assert str(nothing) == "-"
    assert str(Share(1, 2)) == "50% (9%..91%)"


def test_a_resample_is_the_token_weighted_mean_of_records_drawn_with_repetition() -> None:
    found = resampled_nll([[2.0], [30.0]], [1, 10])[:, 0]
    possible = {2.0, 3.0, 32.0 / 11}  # twice the first, twice the second, one of each
    assert {min(possible, key=lambda p: abs(p - v)) for v in found} == possible
    assert all(min(abs(p - v) for p in possible) < 1e-12 for v in found)
    assert np.mean(np.isclose(found, 32.0 / 11)) == pytest.approx(0.5, abs=0.05)


def test_modes_are_resampled_together_so_that_a_constant_difference_has_no_spread() -> None:
    random = np.random.default_rng(0)
    tokens = random.integers(1, 9, 40)
    base = random.random(40) * 5 * tokens
    found = resampled_nll(np.stack([base, base - 0.3 * tokens], 1).tolist(), tokens.tolist())
    assert found.shape == (SAMPLES, 2)
    assert interval(found[:, 1] - found[:, 0]) == pytest.approx((-0.3, -0.3))
    low, high = interval(found[:, 0])
    assert low < float(base.sum() / tokens.sum()) < high


def test_the_same_seed_gives_the_same_interval() -> None:
    losses, tokens = [[1.0], [4.0], [9.0]], [1, 2, 3]
    assert np.array_equal(resampled_nll(losses, tokens, 7), resampled_nll(losses, tokens, 7))
    assert not np.array_equal(resampled_nll(losses, tokens, 7), resampled_nll(losses, tokens, 8))
