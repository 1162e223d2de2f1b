"""Targets are held against the fastest of a kind of peer, and only at the batch sizes that have one."""

from __future__ import annotations

import pytest

from benchmarks.instruments import decode_case as names
from benchmarks.instruments.decode_case import Case
from benchmarks.instruments.results import Spread
from benchmarks.instruments.timing import Run


def case(batch: int, **rates: float) -> Case:
    """Two equal rounds of each contestant, by the name of its constant."""
    runs = {getattr(names, name): [Run((), 0.1, 1.0, int(rate))] * 2 for name, rate in rates.items()}
    return Case(batch, runs, {}, Spread.of([1e9]))


@pytest.mark.parametrize(
    ("float32", "bfloat16", "faster"),
    [(40, 30, names.GENERATE_FLOAT32), (30, 40, names.GENERATE_BFLOAT16)],
)
def test_the_same_values_are_compared_in_the_faster_dtype(float32: int, bfloat16: int, faster: str) -> None:
    found = case(1, BASE_ONLY=60, GENERATE_FLOAT32=float32, GENERATE_BFLOAT16=bfloat16)
    assert found.compared() == [(names.BASE_ONLY, faster, 1.5)]
    assert found.ratio(names.BASE_ONLY, faster).median == 1.5


def test_a_target_is_set_at_its_batch_sizes_alone() -> None:
    rates = {"BASE_ONLY": 100, "ADJACENT": 60, "LLAMA_CPP": 110, "LLAMA_CPP_FOUR": 40}
    targets = {
        batch: {(ours, theirs): least for ours, theirs, least in case(batch, **rates).compared()}
        for batch in (1, 4, 16)
    }
    against = (names.BASE_ONLY, names.LLAMA_CPP)
    assert [targets[batch][against] for batch in (1, 4, 16)] == [0.8, None, 1.5]
    mixed = (names.ADJACENT, names.LLAMA_CPP_FOUR)
    assert [targets[batch][mixed] for batch in (1, 4, 16)] == [1.2, None, None]
    assert case(1, **rates).target_table().count(" met ") == 3
    assert case(16, **rates).target_table().count("not met") == 1
