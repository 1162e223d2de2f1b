"""Figures are the plain ones."""

from __future__ import annotations

import pytest

from benchmarks.adapter_routers.contest import BASE, ORACLE, Round
from benchmarks.adapter_routers.figures import RANDOM, Calibrated, Figures, cost_table
from training.data.encoding import Example


def found(first: float) -> Round:
    """Two domains, a record of each, of 2 and 4 answer tokens."""
    return Round(
        ["chat", "math"],
        [Example("a", (1,), (1, 2)), Example("b", (1,), (1, 2, 3, 4))],
        {BASE: [4.0, 12.0], "ours": [first, 8.0], ORACLE: [2.0, 4.0]},
        {BASE: [4.0, 12.0], "ours": [4.0, 10.0], ORACLE: [3.0, 10.0]},
        {"ours": [{"chat": 1.0, "math": 0.0}, {"chat": 0.5, "math": 0.5}]},
        [("chat",), ("math",)],
        {},
    )


def test_regret_is_to_the_oracle_and_gains_are_to_the_base() -> None:
    figures = Figures([found(2.0), found(4.0)], ("chat", "math"))
    assert figures.measured.mean("ours").value == pytest.approx((6 / 4 + 2) / 2)
    assert figures.regret("ours").value == pytest.approx(100 * (1.75 / 1 - 1))
    assert figures.regrets("ours") == pytest.approx([50.0, 100.0])
    assert figures.random_share("ours").value == pytest.approx(100 * (2.5 - 2.25) / (2.5 - 1.75))
    assert figures.random_share(ORACLE).value == pytest.approx(100 * (2.5 - 2.0) / (2.5 - 1.0))
    assert figures.measured.mean(RANDOM + ORACLE).value == pytest.approx(2.0)
    assert figures.contestants == [BASE, "ours", ORACLE]
    assert "50.0 / 100.0" in figures.table()
    assert "ours" in figures.control()


def test_calibration_is_against_the_best_combination() -> None:
    one = found(2.0)
    calibrated = Calibrated.of(one.beliefs["ours"], one.best, ("chat", "math"))
    assert calibrated.brier.value == pytest.approx((0 + 0 + 0.25 + 0.25) / 4)
    assert calibrated.error == pytest.approx(0.0), "of the two at 0.5 one helps"


def test_costs_are_told_beside_the_prefill() -> None:
    table = cost_table({"prefill": [10.0, 20.0, 40.0], "ours": [20.0, 20.0, 60.0]})
    assert "| ours    | 20.0           | 20.0..60.0 | 1.50" in table
