"""A panel's product is the sum that its weights say, for every kind of weight and any number of tokens."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainstacks.kernels import generic
from brainstacks.kernels.products import product_address
from brainstacks.kernels.tiles import CHUNK, PANEL
from brainstacks.kernels.vectors import ISA, ZERO_POINT
from brainstacks.layers.blocks import Blocks
from brainstacks.layers.panels import KINDS, Panels, of_blocks, of_values

Array = np.ndarray[Any, Any]
Product = Callable[..., None]

ROUNDING = 2.0**-23
"""Of float32, relative; a sum of n terms is right to n of it, times the sum of their sizes."""


def compiled(kind: str) -> Product:
    """What the step calls."""
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 18)(product_address(kind))


@dataclass(frozen=True)
class Activations:
    """x [T, d_in] float32, filled up, as products read it: see `activations.quantise`.

    Attributes:
        q: [T, d_in] int8.
        scale, mass: [T, blocks] float32; zero: int32.
    """

    x: Array
    q: Array
    scale: Array
    zero: Array
    mass: Array

    @staticmethod
    def of(x: Array, panels: Panels) -> Activations:
        x = np.pad(x, ((0, 0), (0, panels.d_in - x.shape[1]))).astype(np.float32)
        blocked = x.reshape(len(x), -1, panels.block)
        largest = np.abs(blocked).max(-1)
        inverse = np.float32(127) / np.where(largest == 0, np.float32(1), largest)
        q = np.rint(blocked * inverse[..., None]).astype(np.int8)
        zero = (-ZERO_POINT * q.astype(np.int32).sum(-1)).astype(np.int32)
        return Activations(x, q.reshape(x.shape), largest / np.float32(127), zero, blocked.sum(-1))

    def token(self, t: int) -> Activations:
        return Activations(*(np.ascontiguousarray(part[t : t + 1]) for part in vars(self).values()))


def multiplied(
    panels: Panels,
    given: Activations,
    out: Array,
    product: Product | None = None,
    rows: Array | None = None,
    start: Array | None = None,
) -> Array:
    """out [T, panels * 16] float32, or start [panels * 16], + the products of all panels, one by one, for all
    tokens or some rows."""
    product = product or compiled(panels.kind)
    out = out.copy()
    x, sums = (given.q, given.zero) if panels.fast else (given.x, given.mass)
    rows = np.arange(len(x)) if rows is None else rows
    for i in range(panels.count):
        product(
            panels.codes[i].ctypes.data,
            panels.scales[i].ctypes.data,
            panels.offsets[i].ctypes.data if panels.offsets is not None else 0,
            panels.levels.ctypes.data,
            x.ctypes.data,
            x.strides[0],
            given.scale.ctypes.data,
            sums.ctypes.data,
            sums.strides[0],
            start.ctypes.data + 4 * PANEL * i if start is not None else 0,
            out.ctypes.data + 4 * PANEL * i,
            out.strides[0],
            panels.d_in // panels.block,
            panels.block // CHUNK,
            rows.ctypes.data,
            len(rows),
            0,
            0,
        )
    return out


def random_blocks(
    random: np.random.Generator, nibbles: bool, d_out: int, count: int, block: int, offsets: bool
) -> Blocks:
    """[d_out, count * block], with every code there is."""
    shape = (d_out, count * block)
    scales = random.uniform(-0.1, 0.1, (2, d_out, count)).astype(np.float32)
    return Blocks(
        codes=random.integers(0, 16, shape, np.uint8)
        if nibbles
        else random.integers(-128, 128, shape, np.int8),
        levels=np.sort(random.uniform(-1, 1, 16)).astype(np.float32) if nibbles else None,
        scales=scales[0],
        offsets=scales[1] if offsets else None,
        block=block,
    )


def random_panels(kind: str, seed: int = 0, d_out: int = 40) -> tuple[Panels, Array]:
    """Some of that kind, and the values [d_out, d_in] that they hold."""
    random = np.random.default_rng(seed)
    speed, _, form = kind.partition("_")
    if not form:
        values = random.normal(size=(d_out, 36)).astype(np.float32)
        bits = values.view(np.uint32)
        if kind == "floats":
            return of_values(values), values
        return of_values((bits >> 16).astype(np.uint16)), (bits & 0xFFFF0000).view(np.float32)
    blocks = random_blocks(random, form == "nibbles", d_out, 3, 32, offsets=True)
    return of_blocks(blocks, fast=speed == "fast"), blocks.values()


def whole_values(panels: Panels, blocks: Blocks) -> Array:
    """[d_out, d_in] float64: what `fast` panels multiply with, without the offsets."""
    whole = (
        panels.levels[blocks.codes].astype(np.float64)
        if blocks.levels is not None
        else blocks.codes.astype(np.float64)
    )
    scales = panels.scales.transpose(0, 2, 1).reshape(-1, panels.scales.shape[1])[: panels.d_out]
    return np.asarray(whole * np.repeat(scales, panels.block, axis=1))


def sums(values: Array, x: Array) -> tuple[Array, Array]:
    """x W^T [T, d_out] in float64, and the sum of its terms' sizes."""
    values, x = values.astype(np.float64), x.astype(np.float64)
    return x @ values.T, np.abs(x) @ np.abs(values).T


quantised = given(
    nibbles=st.booleans(),
    d_out=st.integers(1, 40),
    count=st.integers(1, 5),
    block=st.sampled_from([16, 32, 64]),
    offsets=st.booleans(),
    tokens=st.integers(1, 20),
    cut=st.booleans(),
    seed=st.integers(0, 99),
)


@quantised
@settings(max_examples=60)
def test_exact_products_are_those_of_the_very_values(
    nibbles: bool, d_out: int, count: int, block: int, offsets: bool, tokens: int, cut: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    blocks = random_blocks(random, nibbles, d_out, count, block, offsets)
    panels = of_blocks(blocks, fast=False, block=16 if cut else None)
    x = random.normal(size=(tokens, count * block)).astype(np.float32)
    before = random.normal(size=(tokens, PANEL * panels.count)).astype(np.float32)
    found = multiplied(panels, Activations.of(x, panels), before)
    scaled, sizes = sums(blocks.values(), x)
    if blocks.offsets is not None:  # scale * level and the offset may nearly cancel, and are summed apart
        offset = np.repeat(blocks.offsets, block, axis=1)
        sizes += 2 * sums(offset, x)[1]
    bound = count * block * ROUNDING * sizes + ROUNDING * np.abs(before[:, :d_out]) * (count + 1)
    assert (np.abs(found[:, :d_out] - before[:, :d_out] - scaled) <= bound).all()
    assert np.array_equal(found[:, d_out:], before[:, d_out:]), "what is filled up adds nothing"


@quantised
@settings(max_examples=60)
def test_fast_products_are_whole_sums_of_int8_scaled_by_block(
    nibbles: bool, d_out: int, count: int, block: int, offsets: bool, tokens: int, cut: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    blocks = random_blocks(random, nibbles, d_out, count, block, offsets)
    panels = of_blocks(blocks, fast=True, block=16 if cut else None)
    x = random.normal(size=(tokens, count * block)).astype(np.float32)
    x[random.random(tokens) < 0.2] *= 0.0
    seen = Activations.of(x, panels)
    before = random.normal(size=(tokens, PANEL * panels.count)).astype(np.float32)
    found = multiplied(panels, seen, before)[:, :d_out] - before[:, :d_out].astype(np.float64)

    read = seen.q * np.repeat(seen.scale.astype(np.float64), panels.block, axis=1)
    values = whole_values(panels, blocks)
    expected, sizes = sums(values, read)
    offset = np.zeros_like(values)
    if blocks.offsets is not None:
        offset += np.repeat(blocks.offsets, block, axis=1)
        added, size = sums(offset, read)
        expected, sizes = expected + added, sizes + size
    # A block's sum is exact; its scaling, and the addition to what came before, are rounded.
    blocks_added = 2 * panels.d_in // panels.block + 4
    rounding = blocks_added * ROUNDING * (sizes + np.abs(before[:, :d_out]))
    assert (np.abs(found - expected) <= rounding).all()

    # Of the product with the very values nothing is lost but the rounding of levels and activations.
    exact, _ = sums(blocks.values(), x)
    levels = np.abs(x.astype(np.float64)) @ np.abs(values + offset - blocks.values()).T
    steps = np.repeat(seen.scale.astype(np.float64), panels.block, axis=1) * (0.5 + 1e-4)
    assert (np.abs(found - exact) <= levels + steps @ np.abs(values + offset).T + rounding).all()


@pytest.mark.parametrize("kind", ["floats", "halves"])
@pytest.mark.parametrize(("d_out", "d_in"), [(16, 16), (40, 36), (1, 1), (17, 100)])
@pytest.mark.parametrize("tokens", [1, 3, 4, 8, 13])
def test_values_are_multiplied_as_they_are(kind: str, d_out: int, d_in: int, tokens: int) -> None:
    random = np.random.default_rng(d_in)
    values = random.normal(size=(d_out, d_in)).astype(np.float32)
    if kind == "halves":
        values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    panels = of_values(values if kind == "floats" else (values.view(np.uint32) >> 16).astype(np.uint16))
    assert panels.kind == kind
    x = random.normal(size=(tokens, d_in)).astype(np.float32)
    found = multiplied(
        panels, Activations.of(x, panels), np.zeros((tokens, PANEL * panels.count), np.float32)
    )
    expected, sizes = sums(values, x)
    assert (np.abs(found[:, :d_out] - expected) <= (d_in + 1) * ROUNDING * sizes).all()
    assert not found[:, d_out:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_has_the_same_bits_whatever_the_number_of_others(kind: str) -> None:
    panels, values = random_panels(kind)
    random = np.random.default_rng(1)
    x = random.normal(size=(20, values.shape[1])).astype(np.float32)
    before = random.normal(size=(20, PANEL * panels.count)).astype(np.float32)
    solo = np.concatenate(
        [multiplied(panels, Activations.of(x, panels).token(t), before[t : t + 1]) for t in range(20)]
    )
    for count in range(1, 21):
        together = multiplied(panels, Activations.of(x[:count], panels), before[:count])
        assert np.array_equal(together, solo[:count]), count


@pytest.mark.parametrize("kind", KINDS)
def test_sums_begin_with_what_is_given(kind: str) -> None:
    panels, values = random_panels(kind)
    random = np.random.default_rng(5)
    given = Activations.of(random.normal(size=(7, values.shape[1])).astype(np.float32), panels)
    start = random.normal(size=PANEL * panels.count).astype(np.float32)
    nothing = np.full((7, len(start)), np.nan, np.float32)
    found = multiplied(panels, given, nothing, start=start)
    assert np.array_equal(found, multiplied(panels, given, np.tile(start, (7, 1))))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_rows_that_are_named_are_computed(kind: str) -> None:
    panels, values = random_panels(kind)
    random = np.random.default_rng(4)
    given = Activations.of(random.normal(size=(20, values.shape[1])).astype(np.float32), panels)
    before = random.normal(size=(20, PANEL * panels.count)).astype(np.float32)
    everything = multiplied(panels, given, before)
    for count in (1, 2, 5, 9, 14):
        rows = np.sort(random.choice(20, count, replace=False))
        found = multiplied(panels, given, before, rows=rows)
        assert np.array_equal(found[rows], everything[rows])
        others = np.delete(np.arange(20), rows)
        assert np.array_equal(found[others], before[others])


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_is_no_number_disturbs_no_other(kind: str) -> None:
    panels, values = random_panels(kind)
    x = np.random.default_rng(2).normal(size=(7, values.shape[1])).astype(np.float32)
    nothing = np.zeros((7, PANEL * panels.count), np.float32)
    expected = multiplied(panels, Activations.of(x, panels), nothing)
    given = Activations.of(x, panels)
    given.x[3], given.scale[3], given.mass[3] = np.nan, np.nan, np.nan
    found = multiplied(panels, given, nothing)
    others = [0, 1, 2, 4, 5, 6]
    assert np.array_equal(found[others], expected[others])
    assert np.isnan(found[3, : panels.d_out]).all()


@pytest.mark.skipif(ISA.lanes == 0, reason="the plain loops are all that this CPU has")
@pytest.mark.parametrize("kind", KINDS)
def test_vector_code_computes_what_the_plain_loops_do(kind: str) -> None:
    panels, values = random_panels(kind)
    random = np.random.default_rng(3)
    x = random.normal(size=(13, values.shape[1])).astype(np.float32)
    given = Activations.of(x, panels)
    before = random.normal(size=(13, PANEL * panels.count)).astype(np.float32)
    plain = generic.product(kind)
    found, expected = multiplied(panels, given, before), multiplied(panels, given, before, plain)
    # Whole sums are the same; only what is done in float32 may be rounded at other places.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6 if panels.fast else 2e-5)
