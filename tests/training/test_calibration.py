"""Calibration against numbers worked out by hand."""

from __future__ import annotations

import pytest

from training.calibration import Bin, calibration


def test_bins_error_and_brier_score_by_hand() -> None:
    found = calibration([0.1, 0.9, 0.3, 0.7], [0.0, 1.0, 1.0, 0.4], bins=2)
    low, high = found.bins
    assert (low.low, low.high, low.count) == (0.0, 0.5, 2)
    assert (low.predicted, low.measured) == pytest.approx((0.2, 0.5))
    assert (high.low, high.high, high.count) == (0.5, 1.0, 2)
    assert (high.predicted, high.measured) == pytest.approx((0.8, 0.7))
    assert found.error == pytest.approx(2 / 4 * 0.3 + 2 / 4 * 0.1)
    assert found.brier == pytest.approx((0.01 + 0.01 + 0.49 + 0.09) / 4)


def test_errors_in_one_bin_can_cancel_but_not_in_the_brier_score() -> None:
    found = calibration([0.5, 0.5], [0.0, 1.0], bins=5)
    assert found.bins == (Bin(0.4, 0.6, 2, 0.5, 0.5),)
    assert found.error == 0.0
    assert found.brier == pytest.approx(0.25)


def test_zero_and_one_belong_to_the_outer_bins_and_empty_bins_are_left_out() -> None:
    found = calibration([1.0, 0.0], [1.0, 0.0])
    assert [(b.low, b.high, b.count) for b in found.bins] == [(0.0, 0.1, 1), (0.9, 1.0, 1)]
    assert (found.error, found.brier) == (0.0, 0.0)


def test_nothing_to_compare_and_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        calibration([], [])
    with pytest.raises(ValueError, match="zip"):
        calibration([0.5], [])
