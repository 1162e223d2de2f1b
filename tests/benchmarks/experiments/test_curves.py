"""What learns how fast."""

from __future__ import annotations

import pytest

from benchmarks.experiments.curves import curve_table, steps_to, times_faster

CURVE = [(0, 3.0), (10, 2.0), (20, 2.5), (30, 1.0)]


def test_steps_to_a_loss_are_interpolated_and_none_where_it_is_not_reached() -> None:
    assert steps_to(CURVE, 2.0) == 10
    assert steps_to(CURVE, 2.5) == 5
    assert steps_to(CURVE, 1.75) == 25
    assert steps_to(CURVE, 0.9) is None


def test_speed_is_of_each_seed_and_none_where_the_other_stays_ahead() -> None:
    slow, unreached = [(0, 3.0), (30, 2.0)], [(0, 3.0), (30, 0.5)]
    assert times_faster([CURVE, CURVE], [slow, unreached]) == [pytest.approx(3.0), None]


@pytest.mark.parametrize("count", [2, 5, 41])
def test_the_table_has_the_start_the_end_and_some_between(count: int) -> None:
    table = curve_table({"a": [[(step, 1.0) for step in range(count)]]})
    header = table.splitlines()[0].split()
    assert "0" in header
    assert str(count - 1) in header
    assert len([word for word in header if word.isdigit()]) == min(count, 9)
