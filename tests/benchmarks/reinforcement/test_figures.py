"""What a stage changed is told by shares and losses of the same records."""

from __future__ import annotations

import pytest

from benchmarks.reinforcement.figures import Change, Measured, table


def change() -> Change:
    before = Measured([0.0, 1.0], [10.0, 8.0, 5.0], [9.0, 9.0, 5.0], {"math": [2.0, 4.0]})
    after = Measured([1.0, 1.0], [9.0, 8.0, 6.0], [9.0, 8.0, 5.0], {"math": [3.0, 6.0]})
    return Change(before, after, {"math": [2, 4]})


def test_a_pair_is_won_where_the_preferred_answer_gained_more() -> None:
    assert change().accuracy.count == 1, "the first; in the others the rejected gained, or lost less"


def test_without_a_stage_every_pair_is_undecided_and_half_won() -> None:
    assert Change(change().before, change().before, {}).accuracy.value == 0.5


def test_shares_and_losses_are_without_and_with_the_stage() -> None:
    shares = change().shares()
    without, given, difference = shares["reward"]
    assert (without.value, given.value, difference.value) == (0.5, 1.0, 0.5)
    without, given, _ = shares["preferred is likelier"]
    assert (without.count, given.count) == (1, 0)
    before, after, difference = change().losses()["math"]
    assert (before, after) == (1.0, 1.5)
    assert difference.value == pytest.approx(0.5)
    assert difference.interval == pytest.approx((0.5, 0.5)), "of both records alike"


def test_the_table_names_compositions_and_figures() -> None:
    text = table({"routed": change()})
    assert "| routed      | NLL, math             | 1.000" in text
    assert "preference accuracy" in text
