"""What learns how fast."""

from __future__ import annotations

import pytest

from benchmarks.experiments.curves import curve_table, steps_to, steps_to_the_end_of

CURVE = [(0, 3.0), (10, 2.0), (20, 2.5), (30, 1.0)]


def test_steps_to_a_loss_are_interpolated_and_none_where_it_is_not_reached() -> None:
    assert steps_to(CURVE, 2.0) == 10
    assert steps_to(CURVE, 2.5) == 5
    assert steps_to(CURVE, 1.75) == 25
    assert steps_to(CURVE, 0.9) is None


def test_steps_to_the_end_of_another_are_none_where_it_stays_ahead_and_0_where_it_learnt_nothing() -> None:
    slow, unreached, idle = ([(0, 3.0), (30, end)] for end in (2.0, 0.5, 3.0))
    assert steps_to_the_end_of([slow, unreached, idle], [CURVE] * 3) == [pytest.approx(10), None, 0]


@pytest.mark.parametrize("count", [2, 5, 41])
def test_the_table_has_the_start_the_end_and_some_between(count: int) -> None:
    table = curve_table({"a": [[(step, 1.0) for step in range(count)]]})
    header = table.splitlines()[0].split()
    assert "0" in header
    assert str(count - 1) in header
    assert len([word for word in header if word.isdigit()]) == min(count, 9)
