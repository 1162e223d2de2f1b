"""The work lists of a step cover every key that a token looks at, once, and fit in their arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstacks.gpu_kernels.work_list import (
    CHUNK,
    FIELDS,
    MOST_CHUNKS,
    Table,
    decode_capacity,
    prefill_capacity,
    write_decode_items,
    write_prefill_items,
)

pytestmark = pytest.mark.static_cuda

WINDOWS = st.none() | st.integers(1, 3000)


def decode_items(lengths: list[int], window: int | None, spare: int = 0) -> tuple[Table, Table]:
    items = np.full((decode_capacity(len(lengths), max(lengths)), FIELDS), -1, np.int32)
    ends = np.full(len(lengths) + spare + 1, -1, np.int32)
    starts = np.array(lengths) - 1
    write_decode_items(100 * np.arange(len(lengths)), starts, items, ends, window)
    return items, ends


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=9), WINDOWS, st.integers(0, 3))
def test_the_chunks_of_a_decode_row_are_its_keys_in_order(
    lengths: list[int], window: int | None, spare: int
) -> None:
    items, ends = decode_items(lengths, window, spare)
    assert ends[0] == 0
    assert set(ends[len(lengths) :].tolist()) == {ends[-1]}
    for row, length in enumerate(lengths):
        mine = items[ends[row] : ends[row + 1]]
        assert (mine[:, :4] == [100 * row, row, 1, length - 1]).all()
        first = 0 if window is None else max(0, length - window)
        bounds = [first, *mine[:, 5].tolist()]
        assert bounds[:-1] == mine[:, 4].tolist()
        assert bounds[-1] == length
        assert (np.diff(bounds) > 0).all()
        assert len(mine) <= MOST_CHUNKS
        assert len(mine) == 1 or len(mine) > MOST_CHUNKS // 2 or (np.diff(bounds)[:-1] == CHUNK).all()


@given(st.lists(st.integers(1, 40_000), min_size=2, max_size=6), WINDOWS)
def test_how_a_row_is_cut_depends_on_its_own_length_alone(lengths: list[int], window: int | None) -> None:
    items, ends = decode_items(lengths, window)
    for row, length in enumerate(lengths):
        alone, _ = decode_items([length], window)
        mine = items[ends[row] : ends[row + 1], 4:]
        assert mine.tolist() == alone[: len(mine), 4:].tolist()


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 600)), min_size=1, max_size=6),
    WINDOWS,
    st.integers(1, 128),
)
def test_the_tiles_of_prefill_are_its_tokens_with_all_their_keys(
    runs: list[tuple[int, int]], window: int | None, tile: int
) -> None:
    starts, counts = np.array(runs).T
    tokens = np.cumsum(counts) - counts
    items = np.full((prefill_capacity(len(runs), counts.sum(), tile), FIELDS), -1, np.int32)
    total = np.zeros(1, np.int32)
    write_prefill_items(100 * np.arange(len(runs)), tokens, counts, starts, tile, items, total, window)
    listed = items[: total[0]]
    keys = listed[:, 5] - listed[:, 4]
    assert (np.diff(keys) <= 0).all()  # the longest first
    covered = sorted(
        (token + i, table // 100, start + i, first, last)
        for table, token, count, start, first, last in listed.tolist()
        for i in range(count)
    )
    positions = [(row, start + i) for row, (start, count) in enumerate(runs) for i in range(count)]
    assert [found[:3] for found in covered] == [(t, *at) for t, at in enumerate(positions)]
    for _, _, position, first, last in covered:
        assert first <= (0 if window is None else max(0, position - window + 1))
        assert position < last <= position + tile
    assert (listed[:, 2] <= tile).all()


def test_a_list_that_does_not_fit_is_refused_by_its_size() -> None:
    items, ends = np.zeros((2, FIELDS), np.int32), np.zeros(3, np.int32)
    tables = np.zeros(3, np.int64)
    with pytest.raises(ValueError, match="3 decode rows, and room for 2"):
        write_decode_items(tables, np.array([1, 2, 3]), items, ends)
    with pytest.raises(ValueError, match="a work list of 5 items, and room for 2"):
        write_decode_items(tables[:2], np.array([600, 300]), items, ends)
    with pytest.raises(ValueError, match="a work list of 3 items, and room for 2"):
        write_prefill_items(tables, tables, np.ones(3, np.int64), tables, 16, items, ends[:1])
