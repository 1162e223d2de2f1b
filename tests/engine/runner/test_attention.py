"""The torch backend's attention over blocks is the model's own: with the whole context, a window, grouped
heads.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from brainstacks.device_map import Part
from brainstacks.engine.block_manager import BLOCK_TOKENS, blocks_for
from brainstacks.engine.runner.attention import PagedContext, paged_attention, paged_context
from brainstacks.engine.runner.batch import Span, StepBatch
from brainstacks.engine.runner.kv_cache import PagedCache
from brainstacks.errors import UnsupportedModel
from tests.engine.driving import prompt_of, serve
from tests.engine.stepped import MIX, Stepped, assert_close, cut, expected
from tests.tiny import FAMILIES, WINDOW, tiny_model

HEADS, KV_HEADS, DIM = 4, 2, 3
SCALE = 0.7


@pytest.mark.parametrize("family", FAMILIES)
def test_without_pages_the_served_model_is_bit_for_bit_its_own(tmp_path: Path, family: str) -> None:
    """Plain forwards (training, logits) of a base that the engine has taken over."""
    served = serve(tmp_path, family, backend="torch")
    ids = torch.tensor([prompt_of(21), prompt_of(21, seed=1)])
    with torch.no_grad():
        found = served.base.model(ids, use_cache=False).logits
        assert torch.equal(found, tiny_model(family)(ids, use_cache=False).logits)


def test_soft_caps_of_scores_are_computed_as_transformers_eager_attention_does(tmp_path: Path) -> None:
    """Of a family whose attention transformers computes in no other way."""
    stepped = Stepped(tmp_path, "torch", "gemma2")
    prompts, weights = [prompt_of(length) for length in (40, 5, 33)], [MIX[3], MIX[0], MIX[1]]
    wanted = [
        expected("gemma2", prompt, stepped.stacks, row) for prompt, row in zip(prompts, weights, strict=True)
    ]
    first, *others = stepped.rows(prompts, weights)
    start, *parts = cut(first, 16, 7, 1, 13, 3)
    found = stepped.run([start, *others])
    for one, logits in zip(found[1:], wanted[1:], strict=True):
        assert_close(one, logits, 1e-4)
    whole = torch.cat([found[0], *(stepped.run([part])[0] for part in parts)])
    assert_close(whole, wanted[0], 1e-4)

    model = tiny_model("gemma2")
    assert model.config._attn_implementation == "eager"
    with torch.no_grad():
        for length in (WINDOW - 1, 40):  # without a mask, and with one
            ids = torch.tensor([prompt_of(length)])
            plain = stepped.base.model(ids, use_cache=False).logits
            assert_close(plain, model(ids, use_cache=False).logits, 1e-4)
        seen = stepped.base.model(ids[:, :20]).past_key_values
        for part in (ids[:, 20:21], ids[:, 21:]):  # goes on with the cache of transformers
            at = seen.get_seq_length()
            one = stepped.base.model(part, past_key_values=seen).logits
            assert_close(one, plain[:, at : at + part.shape[1]], 1e-4)
    uncapped = expected("gemma2", prompts[0], stepped.stacks, weights[0], attn_logit_softcapping=None)
    assert (uncapped - wanted[0]).abs().max() > 0.1 * wanted[0].std()


@pytest.mark.parametrize(("more", "said"), [("s_aux", "sinks"), ("position_bias", "position_bias")])
def test_attention_that_has_more_to_it_is_refused_by_name(more: str, said: str) -> None:
    pages = Pages([9])
    context = context_of(pages, [(0, 0, 9)])
    query, key = pages.new(HEADS, 9)[None], pages.new(KV_HEADS, 9)[None]
    options: dict[str, Any] = {"paged": context, more: query}
    with pytest.raises(UnsupportedModel, match=f"attention with {said}"):
        paged_attention(SimpleNamespace(layer_idx=0), query, key, key, None, SCALE, **options)


class Pages:
    """Sequences whose keys and values lie scattered over a cache; everything else in it is NaN."""

    def __init__(self, lengths: list[int], seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        blocks = sum(blocks_for(n) for n in lengths) + 2
        self.cache = PagedCache([Part(torch.device("cpu"), range(1))], blocks, KV_HEADS, DIM, torch.float32)
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
        at = torch.arange(tokens)
        blocks = torch.tensor(self.tables[row])[at // BLOCK_TOKENS]
        self.cache.write(
            0, blocks, at % BLOCK_TOKENS, self.keys[row][:, :tokens], self.values[row][:, :tokens]
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


def context_of(pages: Pages, rows: list[tuple[int, int, int]], *, alone: bool = False) -> PagedContext:
    """Of a step with `rows` (row of `pages`, start, count), single tokens first."""
    spans, first = [], 0
    for _, start, count in rows:
        spans.append(Span(first, count, start))
        first += count
    tables = [pages.tables[row] for row, _, _ in rows]
    blocks = np.zeros((len(rows), max(map(len, tables))), np.int32)
    for held, table in zip(blocks, tables, strict=True):
        held[: len(table)] = table
    positions = np.concatenate([np.arange(start, start + count) for _, start, count in rows])
    completion = np.repeat(np.arange(len(rows)), [count for _, _, count in rows])
    nothing = np.zeros(0, np.int64)
    batch = StepBatch(
        rows=(),
        spans=tuple(spans),
        decoding=sum(count == 1 and start > 0 for _, start, count in rows),
        ids=np.zeros(first, np.int64),
        positions=positions,
        blocks=blocks,
        places=blocks[completion, positions // BLOCK_TOKENS].astype(np.int64),
        weights=(),
        wanted=nothing,
        wanted_counts=(),
        alone=alone,
    )
    return paged_context(batch, pages.cache, torch.device("cpu"))


@pytest.mark.parametrize("window", [None, 1, 3, 17, 100])
@pytest.mark.parametrize("alone", [False, True])
def test_decode_and_prefill_rows_of_one_step_equal_the_plain_sum(window: int | None, alone: bool) -> None:
    """Nothing beyond a row's own tokens is read: it is NaN."""
    rows = [(p, 1) for p in (1, 5, 16, 40)] + [(0, 5), (0, 16), (20, 33), (16, 2), (7, 2)]  # start, count
    pages = Pages([start + count for start, count in rows])
    for row, (start, _) in enumerate(rows):
        pages.write(row, start)
    context = context_of(pages, [(i, *row) for i, row in enumerate(rows)], alone=alone)
    assert [(group.first, group.last) for group in context.decode] == (
        [(0, 1), (1, 2), (2, 3), (3, 4)] if alone else [(0, 2), (2, 4)]
    )
    places = [(row, start + j) for row, (start, count) in enumerate(rows) for j in range(count)]
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
    for row, table in enumerate(pages.tables):
        for held, given in zip(
            pages.cache.read(0, torch.tensor(table)), (pages.keys, pages.values), strict=True
        ):
            assert torch.equal(held[:, : given[row].shape[1]], given[row])
            assert held[:, given[row].shape[1] :].isnan().all()


def test_a_row_in_a_group_of_its_own_does_not_depend_on_its_neighbours() -> None:
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
        context = context_of(pages, [(row, positions[row], 1) for row in rows], alone=True)
        q, k, v = (t[None, :, rows] for t in (query, key, value))
        out, _ = paged_attention(SimpleNamespace(layer_idx=0), q, k, v, None, SCALE, paged=context)
        return out[0]

    together = attend([0, 1, 2, 3, 4])
    for row in range(5):
        assert torch.equal(attend([row])[0], together[row])
    assert torch.equal(attend([4, 2, 0]), together[[4, 2, 0]])
