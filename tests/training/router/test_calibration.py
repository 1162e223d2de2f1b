"""Calibration against numbers worked out by hand."""

from __future__ import annotations

import pytest

from training.router.calibration import calibration


def test_error_and_brier_score_by_hand() -> None:
    found = calibration([0.1, 0.9, 0.3, 0.7], [0.0, 1.0, 1.0, 0.4], bins=2)
    low, high = abs((0.1 + 0.3) / 2 - 0.5), abs((0.9 + 0.7) / 2 - 0.7)
    assert found.error == pytest.approx(2 / 4 * low + 2 / 4 * high)
    assert found.brier == pytest.approx((0.01 + 0.01 + 0.49 + 0.09) / 4)


def test_errors_in_one_bin_can_cancel_but_not_in_the_brier_score() -> None:
    found = calibration([0.5, 0.5], [0.0, 1.0], bins=5)
    assert found.error == 0.0
    assert found.brier == pytest.approx(0.25)


def test_a_bound_belongs_to_the_bin_above_it_and_one_to_the_last() -> None:
    assert calibration([0.5, 0.4], [0.4, 0.5], bins=2).error == pytest.approx(0.1)
    assert calibration([0.5, 1.0], [0.6, 0.9], bins=2).error == pytest.approx(0.0)
    assert calibration([1.0, 0.0], [1.0, 0.0]).error == 0.0


def test_nothing_to_compare_and_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        calibration([], [])
    with pytest.raises(ValueError, match="zip"):
        calibration([0.5], [])
