"""What fleets are asked."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks.scaling.lengths import lengths
from benchmarks.scaling.requests import MOST_STACKS, Traffic, compositions_of, domain_names


def test_requests_come_in_order_at_the_rate_that_was_asked_and_are_the_same_again() -> None:
    traffic = Traffic(20, rate=4.0)
    asked = traffic.requests(2000, lengths(), seed=3)
    arrivals = [one.arrival for one in asked]
    assert arrivals == sorted(arrivals)
    assert len(asked) / arrivals[-1] == pytest.approx(4.0, rel=0.1)
    again = traffic.requests(2000, lengths(), seed=3)
    assert [(one.arrival, one.stacks, one.new) for one in again] == [
        (one.arrival, one.stacks, one.new) for one in asked
    ]


def test_every_domain_is_named_and_the_popular_ones_together() -> None:
    traffic = Traffic(30, rate=1.0)
    made = compositions_of(30, seed=0)
    assert {domain for composition in made for domain in composition} == set(domain_names(30))
    assert {len(composition) for composition in made} == set(range(1, MOST_STACKS + 1))
    named = Counter(stack for one in traffic.requests(5000, lengths(), 0) for stack in one.stacks)
    assert named["0"] > named["5"] > named["29"]


def test_a_turn_brings_what_was_said_before() -> None:
    asked = Traffic(5, rate=2.0).requests(500, [(10, 20)], seed=0)
    talks: dict[int, list[int]] = {}
    for one in asked:
        talks.setdefault(one.conversation, []).append(one.history)
    whole = [histories for histories in talks.values() if histories[0] == 0 and len(histories) > 2]
    assert whole
    assert all(np.diff(histories).tolist() == [30] * (len(histories) - 1) for histories in whole)


def test_the_lengths_of_the_demos_records_are_there() -> None:
    found = lengths()
    assert len(found) > 500
    assert all(prompt > 0 and answer > 0 for prompt, answer in found)
