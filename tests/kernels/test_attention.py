"""Compiled attention over blocks equals the plain sum, reads nothing else, and knows no neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainstacks.kernels.attention import TILE_TOKENS
from brainstacks.kernels.layout import BLOCK, TILE
from brainstacks.kernels.products import product_address
from brainstacks.kernels.tiles import PANEL
from tests.kernels.steps import Step, zeros

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Attention:
    """Queries of some runs of tokens over a cache.

    Whatever none of them may read is NaN; behind a sequence's last value its block holds zeros, which are
    multiplied by zero.

    Attributes:
        runs: (start, count) of each sequence's new tokens, whose keys and values are in the cache too.
        q: [T, kv_heads * share, dim] float32.
        keys, values: [blocks, kv_heads, BLOCK, dim] float32.
        tables: [sequences, width] int32.
    """

    runs: list[tuple[int, int]]
    q: Array
    keys: Array
    values: Array
    tables: Array
    scale: float
    window: int | None
    tile: int = TILE_TOKENS

    def some(self, *chosen: int) -> Attention:
        """The same with some of its sequences."""
        firsts = np.cumsum([0, *(count for _, count in self.runs)])
        q = np.concatenate([self.q[firsts[i] : firsts[i + 1]] for i in chosen])
        return replace(
            self,
            runs=[self.runs[i] for i in chosen],
            q=q,
            tables=np.ascontiguousarray(self.tables[[*chosen]]),
        )


def random_attention(
    runs: list[tuple[int, int]],
    share: int = 3,
    kv_heads: int = 2,
    dim: int = 8,
    window: int | None = None,
    seed: int = 0,
) -> Attention:
    random = np.random.default_rng(seed)
    needed = [-(-(start + count) // BLOCK) for start, count in runs]
    total = sum(needed) + 3
    order = (1 + random.permutation(total - 1)).tolist()  # block 0 belongs to nobody
    keys, values = (np.full((total, kv_heads, BLOCK, dim), np.nan, np.float32) for _ in range(2))
    tables = np.zeros((len(runs), max(needed) + 1), np.int32)
    for row, (start, count) in enumerate(runs):
        tables[row, : needed[row]] = [order.pop() for _ in range(needed[row])]
        values[tables[row, needed[row] - 1]] = 0.0
        first = 0 if window is None else max(0, start - window + 1) // BLOCK * BLOCK
        for position in range(first, start + count):
            block, place = tables[row, position // BLOCK], position % BLOCK
            keys[block, :, place] = random.normal(size=(kv_heads, dim))
            values[block, :, place] = random.normal(size=(kv_heads, dim))
    tokens = sum(count for _, count in runs)
    q = random.normal(size=(tokens, kv_heads * share, dim)).astype(np.float32)
    return Attention(runs, q, keys, values, tables, dim**-0.5, window)


def stored(call: Attention, wide: bool) -> tuple[Array, Array]:
    """Keys and values as `engine.kv_cache.PagedCache` has them."""
    dim = call.q.shape[-1]
    filled = [np.pad(held, ((0, 0), (0, 0), (0, 0), (0, -dim % PANEL))) for held in (call.keys, call.values)]
    if not wide:
        filled = [(held.view(np.uint32) >> 16).astype(np.uint16) for held in filled]
    keys, values = filled
    vectors = values.reshape(*values.shape[:3], -1, PANEL)
    return np.ascontiguousarray(keys.swapaxes(2, 3)), np.ascontiguousarray(vectors.swapaxes(2, 3))


def halves(values: Array) -> Array:
    """Cut off to bfloat16, in float32."""
    return (np.ascontiguousarray(values).view(np.uint32) & 0xFFFF0000).view(np.float32)


def computed(call: Attention, *, wide: bool = True) -> Array:
    """[T, heads, dim], by the step's phase; with bfloat16 keys and values unless `wide`."""
    tokens, heads, dim = call.q.shape
    kv_heads = call.keys.shape[1]
    tiles, first = [], 0
    for sequence, (start, count) in enumerate(call.runs):
        for at in range(0, count, call.tile):
            tiles.append((sequence, first + at, min(call.tile, count - at), start + at))
        first += count
    keys, values = stored(call, wide)
    width = heads * dim + 5
    y, x = np.full((tokens, width), np.nan, np.float32), zeros(tokens, width)
    y[:, : heads * dim] = call.q.reshape(tokens, -1)
    step = Step(
        wide=wide,
        tokens=tokens,
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        depth=-(-dim // PANEL) * PANEL,
        plain=product_address("floats" if wide else "halves"),
        ones=np.ones(PANEL, np.float32),
        tiles=np.array(tiles, TILE),
        tile_count=len(tiles),
        blocks=call.tables,
        block_width=call.tables.shape[1],
        x=x,
        x_width=width,
        y=y,
        y_width=width,
    )
    step.set(step.layer, keys=keys, values=values, window=call.window or 0, scale=call.scale)
    step.run("attend", 0, len(tiles) * kv_heads)
    assert not x[:, heads * dim :].any()
    return x[:, : heads * dim].reshape(tokens, heads, dim)


def plain(call: Attention) -> Array:
    """The same in float64, token by token and head by head."""
    out, t = np.zeros(call.q.shape), 0
    share = call.q.shape[1] // call.keys.shape[1]
    for row, (start, count) in enumerate(call.runs):
        for position in range(start, start + count):
            first = 0 if call.window is None else max(0, position - call.window + 1)
            at = np.arange(first, position + 1)
            blocks, places = call.tables[row][at // BLOCK], at % BLOCK
            for head in range(call.q.shape[1]):
                keys = call.keys[blocks, head // share, places].astype(np.float64)
                scores = keys @ call.q[t, head] * call.scale
                weights = np.exp(scores - scores.max())
                values = call.values[blocks, head // share, places]
                out[t, head] = weights / weights.sum() @ values
            t += 1
    return out


def assert_plain(call: Attention, found: Array) -> None:
    np.testing.assert_allclose(found, plain(call), rtol=1e-5, atol=1e-5)


RUNS = [(0, 1), (1, 1), (15, 1), (16, 1), (40, 1), (0, 5), (0, 16), (0, 33), (20, 33), (16, 2), (7, 12)]


@given(
    runs=st.lists(st.sampled_from(RUNS), min_size=1, max_size=5),
    share=st.sampled_from([1, 2, 3, 4, 9]),
    kv_heads=st.integers(1, 3),
    dim=st.sampled_from([4, 8, 64, 80]),
    window=st.sampled_from([None, 1, 8, 16, 17, 1000]),
    seed=st.integers(0, 99),
    wide=st.booleans(),
)
@settings(max_examples=40)
def test_each_token_attends_to_its_own_sequence_up_to_itself(
    runs: list[tuple[int, int]],
    share: int,
    kv_heads: int,
    dim: int,
    window: int | None,
    seed: int,
    wide: bool,
) -> None:
    call = random_attention(runs, share, kv_heads, dim, window, seed)
    if not wide:
        call = replace(call, keys=halves(call.keys), values=halves(call.values))
    assert_plain(call, computed(call, wide=wide))


@pytest.mark.parametrize("window", [None, 20])
def test_a_sequence_has_the_same_bits_alone_and_among_others(window: int | None) -> None:
    call = random_attention([(32, 1), (0, 1), (3, 20), (16, 1), (49, 1), (0, 9)], window=window)
    together, first = computed(call), 0
    for i, (_, count) in enumerate(call.runs):
        assert np.array_equal(computed(call.some(i)), together[first : first + count]), i
        first += count
    assert np.array_equal(computed(call.some(4, 0)), together[[23, 0]])


@pytest.mark.parametrize("window", [None, 1, 5, 20])
def test_a_token_has_the_same_bits_however_a_prompt_is_cut(window: int | None) -> None:
    call = random_attention([(5, 45)], window=window)
    expected = computed(call)
    for tile in range(1, TILE_TOKENS):
        assert np.array_equal(computed(replace(call, tile=tile)), expected), tile


def test_sequences_that_share_the_blocks_of_a_prefix_read_the_same_tokens() -> None:
    call = random_attention([(39, 1), (39, 1), (32, 8)])
    tables = call.tables.copy()
    tables[1:, :2] = tables[0, :2]
    shared = replace(call, tables=tables)
    assert_plain(shared, computed(shared))


def test_scores_far_from_zero_do_not_overflow() -> None:
    call = replace(random_attention([(19, 1), (0, 33)]), scale=40.0)
    np.testing.assert_allclose(computed(call), plain(call), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_no_number_shows_and_disturbs_no_other_token_or_head(value: float) -> None:
    call = random_attention([(19, 1), (0, 12), (6, 1)])
    expected = computed(call)
    q = call.q.copy()
    q[4, 2, 3] = value
    found = computed(replace(call, q=q))
    assert np.isnan(found[4, 2]).all()
    hurt = np.zeros(found.shape[:2], bool)
    hurt[4, 2] = True
    assert np.array_equal(found[~hurt], expected[~hurt])
