"""The expert gate of the compiled deltas; the deltas themselves are compared in whole steps, by
`tests/engine/runner/test_backends.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from brainstacks.kernels.deltas import _choose
from brainstacks.layers.delta import gate_weights

Array = np.ndarray[Any, Any]


def _chosen(logits: Any, gates: Any, top_k: Any) -> None:
    _choose(logits, gates, top_k)


chosen = njit(_chosen)


def gates_of(logits: list[float], top_k: int) -> Array:
    given, gates = np.array(logits, np.float32), np.full(len(logits), 7.0, np.float32)
    chosen(given, gates, top_k)
    return gates


@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=9, unique=True),
    top_k=st.integers(1, 9),
)
def test_the_gate_is_the_softmax_of_the_largest_logits_and_zero_elsewhere(
    logits: list[float], top_k: int
) -> None:
    top_k = min(top_k, len(logits))
    wanted = gate_weights(torch.tensor([logits]), top_k)[0].numpy()
    found = gates_of(logits, top_k)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-30)
    assert found.sum() == pytest.approx(1.0)


def test_of_equal_logits_the_first_are_kept() -> None:
    assert gates_of([1.0, 2.0, 1.0, 2.0, 2.0], 2).tolist() == [0.0, 0.5, 0.0, 0.5, 0.0]
    assert gates_of([3.0, 3.0, 3.0], 1).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_logit_that_is_no_number_shows(value: float) -> None:
    assert np.isnan(gates_of([0.0, value, 1.0], 3)).any()
