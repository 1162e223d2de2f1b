"""Some columns of a stack's B times one token's h are the sum that they say, added to what was there."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstacks.kernels import generic
from brainstacks.kernels.columns import KINDS, columns_address
from brainstacks.kernels.tiles import PANEL
from brainstacks.kernels.vectors import ISA, ZERO_POINT

Array = np.ndarray[Any, Any]
Columns = Callable[..., None]

NAMES = [name for name, _ in KINDS]


def compiled(kind: str) -> Columns:
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 8)(columns_address(kind))


def _halves(values: Array) -> Array:
    """float32 that bfloat16 holds."""
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


class Case:
    """Random panels of `fours` * 4 columns, a random h, and what was there before.

    Attributes:
        wanted: [16 * panels] float64; bound: of the error that rounding may make.
    """

    def __init__(self, kind: str, panels: int, fours: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        count = 4 * fours
        self.panels, self.fours = panels, fours
        self.before = random.normal(size=PANEL * panels).astype(np.float32)
        self.scale, self.zero = np.zeros(1, np.float32), np.zeros(1, np.int32)
        self.scales = np.zeros(0, np.uint16)
        if kind == "fast_bytes":
            codes = random.integers(-127, 128, (panels, PANEL, count), np.int8)
            scales = _halves(random.uniform(0.5, 2.0, (panels, PANEL)).astype(np.float32))
            self.scales = (scales.view(np.uint32) >> 16).astype(np.uint16)
            self.h = random.integers(-127, 128, count).astype(np.int8)
            self.scale[0], self.zero[0] = 0.01, -ZERO_POINT * self.h.astype(np.int32).sum()
            self.weights = np.ascontiguousarray(codes.reshape(panels, PANEL, fours, 4).swapaxes(1, 2))
            values, h = codes * scales[..., None].astype(np.float64), self.h * float(self.scale[0])
        else:
            wide = random.normal(size=(panels, count, PANEL)).astype(np.float32)
            if kind == "halves":
                wide = _halves(wide)
            self.h = random.normal(size=count).astype(np.float32)
            self.weights = wide if kind == "floats" else (wide.view(np.uint32) >> 16).astype(np.uint16)
            values, h = wide.swapaxes(1, 2).astype(np.float64), self.h.astype(np.float64)
        self.wanted = self.before + (values @ h).reshape(-1)
        sizes = np.abs(self.before) + (np.abs(values) @ np.abs(h)).reshape(-1)
        self.bound = (count + 4) * 2.0**-24 * sizes

    def computed(self, columns: Columns) -> Array:
        """[16 * panels], and nothing behind it."""
        out = np.concatenate([self.before, np.full(PANEL, 7.0, np.float32)])
        columns(
            self.weights.ctypes.data,
            self.scales.ctypes.data,
            self.panels,
            self.h.ctypes.data,
            self.scale.ctypes.data,
            self.zero.ctypes.data,
            self.fours,
            out.ctypes.data,
        )
        assert (out[-PANEL:] == 7.0).all()
        return out[:-PANEL]


@pytest.mark.parametrize("kind", NAMES)
@given(panels=st.integers(1, 9), fours=st.integers(1, 9), seed=st.integers(0, 99))
def test_columns_add_their_products(kind: str, panels: int, fours: int, seed: int) -> None:
    case = Case(kind, panels, fours, seed)
    assert (np.abs(case.computed(compiled(kind)) - case.wanted) <= case.bound).all()


@pytest.mark.skipif(ISA.lanes == 0, reason="the plain loops are all that this CPU has")
@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("fours", [1, 2, 3, 4, 8])
def test_vector_code_computes_what_the_plain_loops_do(kind: str, fours: int) -> None:
    case = Case(kind, 3, fours, seed=fours)
    found, expected = case.computed(compiled(kind)), case.computed(generic.columns(kind))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", NAMES)
def test_an_h_that_is_no_number_shows_in_every_row(kind: str) -> None:
    case = Case(kind, 2, 4, seed=0)
    case.scale[0] = np.nan
    if kind != "fast_bytes":
        case.h[3] = np.nan
    assert np.isnan(case.computed(compiled(kind))).all()
