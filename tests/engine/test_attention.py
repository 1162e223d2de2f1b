"""Attention over blocks is the model's own attention: with the whole context, a window, and grouped heads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch

from brainstacks.engine import attention
from brainstacks.engine.attention import DecodeRows, PagedContext, PrefillRow, paged_attention
from brainstacks.engine.block_pool import BLOCK_TOKENS, blocks_for
from brainstacks.engine.kv_cache import PagedCache
from tests.engine.driving import prompt_of, serve
from tests.tiny import FAMILIES, tiny_model

HEADS, KV_HEADS, DIM = 4, 2, 3
SCALE = 0.7


@pytest.mark.parametrize("family", FAMILIES)
def test_without_pages_the_served_model_is_bit_for_bit_its_own(tmp_path: Path, family: str) -> None:
    """Plain forwards (training, logits) of a base that the engine has taken over."""
    served = serve(tmp_path, family)
    ids = torch.tensor([prompt_of(21), prompt_of(21, seed=1)])
    with torch.no_grad():
        found = served.base.model(ids, use_cache=False).logits
        assert torch.equal(found, tiny_model(family)(ids, use_cache=False).logits)


class Pages:
    """Sequences whose keys and values lie scattered over a cache; everything else in it is NaN."""

    def __init__(self, lengths: list[int], seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        blocks = sum(blocks_for(n) for n in lengths) + 2
        self.cache = PagedCache(1, blocks, KV_HEADS, DIM, torch.device("cpu"), torch.float32)
        for tensor in (self.cache.keys[0], self.cache.values[0]):
            tensor.fill_(float("nan"))
        free = (1 + torch.randperm(blocks, generator=self.random)).tolist()
        self.tables = [[free.pop() for _ in range(blocks_for(n))] for n in lengths]
        self.keys = [self.new(KV_HEADS, n) for n in lengths]
        self.values = [self.new(KV_HEADS, n) for n in lengths]

    def new(self, heads: int, tokens: int) -> torch.Tensor:
        return torch.randn(heads, tokens, DIM, generator=self.random)

    def write(self, row: int, tokens: int) -> None:
        """The first `tokens` tokens of a row are in the cache already."""
        for at in range(tokens):
            block, offset = self.tables[row][at // BLOCK_TOKENS], at % BLOCK_TOKENS
            self.cache.keys[0][block, :, offset] = self.keys[row][:, at]
            self.cache.values[0][block, :, offset] = self.values[row][:, at]

    def decode_rows(self, tables: list[list[int]], positions: list[int], runs: tuple[int, ...]) -> DecodeRows:
        width = max(map(len, tables))
        return DecodeRows(
            torch.tensor([table + [0] * (width - len(table)) for table in tables], dtype=torch.int32),
            torch.tensor([p + 1 for p in positions], dtype=torch.int32),
            runs,
        )

    def plain(self, query: torch.Tensor, row: int, position: int, window: int | None) -> torch.Tensor:
        """One token [H, D], head by head."""
        first = 0 if window is None else max(0, position - window + 1)
        out = []
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS)
            scores = self.keys[row][group, first : position + 1] @ query[head] * SCALE
            out.append(scores.softmax(0) @ self.values[row][group, first : position + 1])
        return torch.stack(out)


@pytest.mark.parametrize("window", [None, 1, 3, 17, 100])
@pytest.mark.parametrize("runs", [(4,), (2, 2), (1, 1, 1, 1), "compiled"])
def test_decode_and_prefill_rows_of_one_step_equal_the_plain_sum(
    monkeypatch: pytest.MonkeyPatch, window: int | None, runs: tuple[int, ...] | Literal["compiled"]
) -> None:
    """Nothing beyond a row's own tokens is read: it is NaN."""
    if runs == "compiled":
        runs = (4,)
    else:
        monkeypatch.setattr(attention, "supports", lambda _: False)
    decode = [1, 5, 16, 40]  # positions of the new tokens
    prefill = [(0, 5), (0, 16), (20, 33), (16, 1), (7, 2)]
    pages = Pages([p + 1 for p in decode] + [start + n for start, n in prefill])
    places = [(row, p) for row, p in enumerate(decode)]
    places += [(len(decode) + i, start + j) for i, (start, n) in enumerate(prefill) for j in range(n)]
    for row, position in enumerate([*decode, *(start for start, _ in prefill)]):
        pages.write(row, position)
    context = PagedContext(
        pages.cache,
        torch.tensor([pages.tables[row][p // BLOCK_TOKENS] for row, p in places]),
        torch.tensor([p % BLOCK_TOKENS for _, p in places]),
        pages.decode_rows(pages.tables[: len(decode)], decode, runs),
        tuple(
            PrefillRow(torch.tensor(pages.tables[len(decode) + i]), start, n)
            for i, (start, n) in enumerate(prefill)
        ),
    )
    query = pages.new(HEADS, len(places))[None]
    key, value = (
        torch.stack([held[r][:, p] for r, p in places], 1)[None] for held in (pages.keys, pages.values)
    )
    for _ in range(2):  # a second layer finds the masks of the first
        out, _ = paged_attention(
            SimpleNamespace(layer_idx=0), query, key, value, None, SCALE, sliding_window=window, paged=context
        )
        assert out.shape == (1, len(places), HEADS, DIM)
        for i, (row, position) in enumerate(places):
            expected = pages.plain(query[0, :, i], row, position, window)
            torch.testing.assert_close(out[0, i], expected, atol=1e-5, rtol=1e-5)
    for row, position in places:
        block, offset = pages.tables[row][position // BLOCK_TOKENS], position % BLOCK_TOKENS
        assert torch.equal(pages.cache.keys[0][block, :, offset], pages.keys[row][:, position])
        assert torch.equal(pages.cache.values[0][block, :, offset], pages.values[row][:, position])


@pytest.mark.parametrize("compiled", [False, True])
def test_a_row_in_a_group_of_its_own_does_not_depend_on_its_neighbours(
    monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    if not compiled:
        monkeypatch.setattr(attention, "supports", lambda _: False)
    positions = [20, 3, 300, 40, 15]
    pages = Pages([p + 1 for p in positions])
    query, key, value = (
        pages.new(HEADS, 5),
        *(
            torch.stack([held[row][:, p] for row, p in enumerate(positions)], 1)
            for held in (pages.keys, pages.values)
        ),
    )
    for row, position in enumerate(positions):
        pages.write(row, position)

    def attend(rows: list[int]) -> torch.Tensor:
        context = PagedContext(
            pages.cache,
            torch.tensor([pages.tables[row][-1] for row in rows]),
            torch.tensor([positions[row] % BLOCK_TOKENS for row in rows]),
            pages.decode_rows(
                [pages.tables[row] for row in rows], [positions[row] for row in rows], (1,) * len(rows)
            ),
            (),
        )
        q, k, v = (t[None, :, rows] for t in (query, key, value))
        out, _ = paged_attention(SimpleNamespace(layer_idx=0), q, k, v, None, SCALE, paged=context)
        return out[0]

    together = attend([0, 1, 2, 3, 4])
    for row in range(5):
        assert torch.equal(attend([row])[0], together[row])
    assert torch.equal(attend([4, 2, 0]), together[[4, 2, 0]])
