"""A weight packed into panels is the same weight, filled up with zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstacks.kernels.tiles import CHUNK, PANEL
from brainstacks.layers.blocks import Blocks
from brainstacks.layers.panels import (
    KINDS,
    LARGEST,
    LINE,
    MEMORY_BLOCK,
    Memory,
    Panels,
    aligned_zeros,
    of_blocks,
    of_values,
    whole_levels,
)

Array = np.ndarray[Any, Any]

NF4 = np.array(
    [
        -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
        0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
    ],
    np.float32,
)  # fmt: skip


def blocks(
    nibbles: bool, d_out: int = 21, count: int = 3, block: int = 32, *, offsets: bool = True
) -> Blocks:
    random = np.random.default_rng(d_out)
    shape = (d_out, count * block)
    scales = random.uniform(0.5, 1.5, (2, d_out, count)).astype(np.float32)
    return Blocks(
        codes=random.integers(0, 16, shape, np.uint8)
        if nibbles
        else random.integers(-128, 128, shape, np.int8),
        levels=NF4 if nibbles else None,
        scales=scales[0],
        offsets=scales[1] if offsets else None,
        block=block,
    )


def unpacked(panels: Panels) -> Array:
    """Codes or values [rows, d_in], read as the module's docstring has it."""
    if panels.kind in ("floats", "halves"):
        return panels.codes.transpose(0, 2, 1).reshape(-1, panels.d_in)
    rows = np.zeros((panels.count, PANEL, panels.d_in), np.int64)
    for k in range(panels.d_in):
        if panels.kind.endswith("bytes"):
            rows[:, :, k] = panels.codes[:, k // 4, :, k % 4]
        else:
            byte = panels.codes[:, k // 8, :, k % 4]
            rows[:, :, k] = byte & 15 if k % 8 < 4 else byte >> 4
    return rows.reshape(-1, panels.d_in)


def by_row(per_block: Array) -> Array:
    """[panels, blocks, 16] -> [rows, blocks]."""
    return per_block.transpose(0, 2, 1).reshape(-1, per_block.shape[1])


@pytest.mark.parametrize("nibbles", [True, False])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("d_out", [1, 16, 21])
def test_codes_and_scales_are_where_they_belong_and_the_rest_is_zero(
    nibbles: bool, fast: bool, d_out: int
) -> None:
    given = blocks(nibbles, d_out)
    panels = of_blocks(given, fast=fast)
    assert panels.kind == f"{'fast' if fast else 'exact'}_{'nibbles' if nibbles else 'bytes'}"
    assert panels.kind in KINDS
    assert (panels.fast, panels.d_in, panels.d_out, panels.block) == (fast, 96, d_out, 32)
    assert panels.count == -(-d_out // PANEL)
    codes, scales = unpacked(panels), by_row(panels.scales)
    assert np.array_equal(codes[:d_out], given.codes)
    unit = whole_levels(NF4)[1] if nibbles and fast else 1.0
    assert np.array_equal(scales[:d_out], given.scales * np.float32(unit))
    assert panels.offsets is not None
    assert given.offsets is not None
    assert np.array_equal(by_row(panels.offsets)[:d_out], given.offsets)
    for filled in (codes, scales, by_row(panels.offsets)):
        assert not filled[d_out:].any()
    if nibbles and not fast:
        assert np.array_equal(panels.levels, NF4)
    if nibbles and fast:
        assert panels.levels.dtype == np.int8
        assert np.array_equal(panels.levels, whole_levels(NF4)[0])
    parts = (panels.codes, panels.scales, panels.offsets, panels.levels)
    assert all(part.flags.c_contiguous for part in parts)
    assert panels.nbytes == sum(part.nbytes for part in parts)


def test_without_offsets_there_are_none() -> None:
    assert of_blocks(blocks(True, offsets=False), fast=True).offsets is None


@pytest.mark.parametrize("nibbles", [True, False])
def test_blocks_that_are_cut_smaller_keep_their_scales(nibbles: bool) -> None:
    given = blocks(nibbles)
    panels = of_blocks(given, fast=False, block=16)
    assert panels.block == 16
    assert panels.offsets is not None
    assert np.array_equal(by_row(panels.scales)[:21], np.repeat(given.scales, 2, axis=1))
    assert given.offsets is not None
    assert np.array_equal(by_row(panels.offsets)[:21], np.repeat(given.offsets, 2, axis=1))


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize(("d_out", "d_in"), [(16, 16), (21, 36), (1, 1)])
def test_values_are_filled_up_to_whole_panels_and_chunks(dtype: Any, d_out: int, d_in: int) -> None:
    values = np.random.default_rng(0).integers(1, 1000, (d_out, d_in)).astype(dtype)
    panels = of_values(values)
    assert panels.kind == ("floats" if dtype is np.float32 else "halves")
    assert panels.d_in == panels.block == -(-d_in // CHUNK) * CHUNK
    found = unpacked(panels)
    assert found.dtype == dtype
    assert np.array_equal(found[:d_out, :d_in], values)
    assert not found[d_out:].any()
    assert not found[:, d_in:].any()
    assert (panels.scales == 1.0).all()
    assert panels.scales.shape == (panels.count, 1, PANEL)
    assert not panels.fast


# --- whole levels --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "levels",
    [np.arange(-8, 8), np.arange(16), np.array([-127, 127, *range(14)])],
    ids=["q4_0", "q4_1", "ends"],
)
def test_whole_levels_are_kept(levels: Array) -> None:
    whole, unit = whole_levels(levels.astype(np.float32))
    assert unit == 1.0
    assert whole.dtype == np.int8
    assert np.array_equal(whole, levels)


def test_whole_levels_that_do_not_fit_are_scaled() -> None:
    whole, unit = whole_levels(np.linspace(-300, 300, 16).round().astype(np.float32))
    assert np.abs(whole.astype(int)).max() <= LARGEST
    assert unit > 2.0


def test_nf4_levels_are_rounded_better_than_by_the_plain_choice() -> None:
    whole, unit = whole_levels(NF4)
    plain = np.rint(NF4 * LARGEST) / LARGEST
    assert np.square(whole * unit - NF4).sum() < 0.8 * np.square(plain - NF4).sum()


@given(
    st.lists(st.floats(-10, 10, width=32), min_size=16, max_size=16).filter(lambda v: max(map(abs, v)) > 1e-3)
)
def test_the_error_of_any_levels_is_less_than_half_a_step_of_the_largest(levels: list[float]) -> None:
    """Root mean square."""
    given = np.array(levels, np.float32)
    whole, unit = whole_levels(given)
    assert np.abs(whole.astype(int)).max() <= LARGEST
    assert np.sqrt(np.square(whole * unit - given).mean()) <= np.abs(given).max() / (2 * LARGEST) * 1.0001


def test_what_is_kept_is_a_copy_that_begins_with_a_cache_line_and_overlaps_nothing() -> None:
    random = np.random.default_rng(0)
    memory = Memory()
    given_ = [
        random.integers(0, 99, shape).astype(kind)
        for shape, kind in (((3, 5), np.uint8), ((7,), np.float32), ((2, 3, 4), np.int64), ((0,), np.int8))
    ] + [np.ones(MEMORY_BLOCK + 1, np.int8), np.ones(9, np.float32)]
    kept = [memory.keep(array) for array in given_]
    wanted = [array.copy() for array in given_]
    for array in given_:
        array[...] = 77
    for found, array in zip(kept, wanted, strict=True):
        assert found.ctypes.data % LINE == 0
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    assert memory.nbytes >= sum(array.nbytes for array in wanted)


@pytest.mark.parametrize("shape", [(3, 16), (1,), (5, 7)])
def test_aligned_zeros_begin_with_a_cache_line(shape: tuple[int, ...]) -> None:
    found = aligned_zeros(shape, np.float32)
    assert found.ctypes.data % LINE == 0
    assert found.shape == shape
    assert not found.any()
