"""Figures of the studies: means are the plain ones, intervals are paired and take seeds into account."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from benchmarks.experiments.measurements import Measurements

TOKENS = {"chat": [4, 10, 6, 5, 7, 9], "math": [3, 8, 12, 5, 5, 6]}


def nats(loss: float) -> dict[str, list[float]]:
    """Records that vary alike under every contestant, about `loss` nats per token."""
    draw = random.Random(0)
    noise = {d: [draw.uniform(-0.5, 0.5) for _ in tokens] for d, tokens in TOKENS.items()}
    return {
        d: [n * (loss + e) for n, e in zip(tokens, noise[d], strict=True)] for d, tokens in TOKENS.items()
    }


def test_a_domain_is_weighted_by_tokens_and_the_mean_is_plain() -> None:
    one = nats(2.0)
    measured = Measurements(TOKENS, {"one": [one]})
    by_hand = {d: sum(one[d]) / sum(TOKENS[d]) for d in TOKENS}
    assert measured.nll("one", "chat", 0) == pytest.approx(by_hand["chat"])
    assert measured.mean("one").value == pytest.approx(sum(by_hand.values()) / 2)
    low, high = measured.mean("one").interval
    assert low < measured.mean("one").value < high


def test_seeds_are_averaged_and_widen_the_interval() -> None:
    seeds = [nats(level) for level in (1.0, 3.0)]
    measured = Measurements(TOKENS, {"two": seeds, "alike": [nats(2.0)] * 2})
    two, alike = measured.mean("two"), measured.mean("alike")
    assert two.value == pytest.approx(alike.value)
    assert two.interval[1] - two.interval[0] > 1.5 > alike.interval[1] - alike.interval[0]


def test_the_spread_that_seeds_add_is_that_of_a_sample_not_of_a_population() -> None:
    levels = (1.9, 2.1, 2.0)
    measured = Measurements(TOKENS, {"zero": [nats(0.0)], "three": [nats(level) for level in levels]})
    low, high = measured.difference("three", "zero").interval
    # A resampled mean of three has the values of 27 draws; 1.96 standard errors are 0.113.
    draws = sorted(sum(draw) / 3 for draw in itertools.product(levels, repeat=3))
    assert low == pytest.approx(2.0 + math.sqrt(3 / 2) * (draws[0] - 2.0), abs=0.01)
    assert high == pytest.approx(2.0 + math.sqrt(3 / 2) * (draws[-1] - 2.0), abs=0.01)


def test_differences_are_paired_so_that_what_contestants_share_cancels() -> None:
    measured = Measurements(TOKENS, {"base": [nats(2.0)], "ours": [nats(1.9)] * 2})
    difference = measured.difference("ours", "base")
    assert difference.value == pytest.approx(-0.1)
    assert difference.interval == pytest.approx((-0.1, -0.1))
    assert difference.sign == -1
    assert measured.difference("ours", "ours").sign == 0


def test_a_ratio_is_that_of_the_sums() -> None:
    losses = {"base": 2.0, "half": 1.9, "whole": 1.8}
    measured = Measurements(TOKENS, {n: [nats(x)] for n, x in losses.items()})
    gains = {n: [("base", "math", 1.0), (n, "math", -1.0)] for n in ("half", "whole")}
    share = measured.ratio(gains["half"], gains["whole"])
    assert share.value == pytest.approx(0.5)
    assert share.interval == pytest.approx((0.5, 0.5))


def test_the_first_records_alone_and_more_contestants_on_them() -> None:
    one = nats(2.0)
    few = Measurements(TOKENS, {"one": [one]}).first(2)
    assert few.nll("one", "math", 0) == pytest.approx(sum(one["math"][:2]) / sum(TOKENS["math"][:2]))
    both = few.together({"zero": [{d: [0.0, 0.0] for d in TOKENS}]})
    assert both.mean("zero").value == 0.0
    assert set(both.to_dict()) == {"one", "zero"}


def test_the_table_has_every_contestant_and_its_difference() -> None:
    measured = Measurements(TOKENS, {"base": [nats(2.0)], "ours": [nats(1.5)]})
    header, _, base, ours = measured.table("base").splitlines()
    assert "math" in header
    assert "-0.500 [-0.500, -0.500]" in ours
    assert "[" not in base
