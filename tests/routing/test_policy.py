"""Probabilities -> weights -> what is applied."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstacks.routing.policy import GATE_THRESHOLD, active_domains, floored

weights = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.floats(-2, 2))


def test_a_floor_lifts_what_is_below_it_and_nothing_else() -> None:
    assert floored({"chat": 0.05, "math": 0.3}, {"chat": 0.2}) == {"chat": 0.2, "math": 0.3}
    assert floored({"chat": 0.6}, {"chat": 0.2}) == {"chat": 0.6}


@pytest.mark.parametrize(
    ("weight", "on"), [(0.12, False), (0.1201, True), (-0.12, False), (-0.5, True), (0.0, False)]
)
def test_the_gate_is_off_up_to_and_including_its_threshold(weight: float, on: bool) -> None:
    assert GATE_THRESHOLD == 0.12
    assert active_domains({"a": weight}) == (("a",) if on else ())


@given(weights, st.floats(0, 0.99), st.one_of(st.none(), st.integers(0, 5)))
def test_active_domains_are_the_heaviest_above_the_gate_in_their_own_order(
    given_weights: dict[str, float], threshold: float, top: int | None
) -> None:
    active = active_domains(given_weights, threshold, top)
    above = [d for d in given_weights if abs(given_weights[d]) > threshold]
    assert list(active) == [d for d in given_weights if d in active]
    assert set(active) <= set(above)
    assert len(active) == (len(above) if top is None else min(top, len(above)))
    left = [abs(given_weights[d]) for d in above if d not in active]
    assert not left or not active or max(left) <= min(abs(given_weights[d]) for d in active)


def test_among_equals_the_earlier_domain_stays() -> None:
    assert active_domains({"a": 0.5, "b": -0.5, "c": 0.5}, top=2) == ("a", "b")
