"""The simulated replica beside measured ones."""

from __future__ import annotations

from benchmarks.scaling.validation import compare


def test_the_simulation_is_too_fast_by_a_known_factor_and_hits_as_often() -> None:
    for one in compare():
        if one.figure == "tokens_per_second":
            assert 1.0 <= one.ratio < 2.0, one
        if one.figure == "hit_rate":
            assert abs(one.simulated - one.measured) < 0.05, one
