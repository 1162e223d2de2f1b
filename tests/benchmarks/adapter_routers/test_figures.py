"""Figures are the plain ones, and random twins have the norms of what they stand for."""

from __future__ import annotations

import pytest
import torch

from benchmarks.adapter_routers.contest import BASE, ORACLE, Round, units
from benchmarks.adapter_routers.figures import RANDOM, Calibrated, Figures, cost_table
from benchmarks.adapter_routers.random_twins import random_twin, with_random_twins
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.registry import Registry
from training.data.encoding import Example
from training.router.stacked_base import StackedBase


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


def test_on_or_off_is_by_the_routers_own_bound() -> None:
    assert units([{"chat": 0.3, "math": 0.2}], 0.2) == [{"chat": 1.0}]


def test_twins_have_the_norms_of_every_factor_and_other_values(
    stacks: dict[str, StackTensors], stacked: StackedBase, served: Registry
) -> None:
    stack = stacks["art"]
    one, other = random_twin(stack, 0), random_twin(stack, 1)
    for name, tensor in stack.tensors.items():
        assert one.tensors[name].norm() == pytest.approx(float(tensor.norm()), rel=1e-5)
        for different in (tensor, other.tensors[name]):
            cosine = torch.cosine_similarity(one.tensors[name].flatten(), different.flatten(), dim=0)
            assert abs(cosine) < 0.75
    twins = with_random_twins(stacked, served, 0)
    assert twins.base is stacked.base
    assert list(twins.digests) == list(stacked.digests)
    assert not set(twins.digests.values()) & set(stacked.digests.values())
