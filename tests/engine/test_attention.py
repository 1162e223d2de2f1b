"""Attention over slots is the model's own attention: with the whole context, a window, and grouped heads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from brainstacks.engine.attention import SlotContext, slot_attention
from brainstacks.engine.kv_cache import SlotCache
from tests.engine.driving import prompt_of, serve
from tests.tiny import FAMILIES, tiny_model

HEADS, KV_HEADS, DIM = 4, 2, 3


@pytest.mark.parametrize("family", FAMILIES)
def test_without_slots_the_served_model_is_bit_for_bit_its_own(tmp_path: Path, family: str) -> None:
    """Plain forwards (training, router passes, logits) of a base that the engine has taken over."""
    served = serve(tmp_path, family)
    ids = torch.tensor([prompt_of(21), prompt_of(21, seed=1)])
    with torch.no_grad():
        found = served.base.model(ids, use_cache=False).logits
        assert torch.equal(found, tiny_model(family)(ids, use_cache=False).logits)


def plain(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: int, window: int | None
) -> torch.Tensor:
    """One token [H, D] over keys [KV, n, D], head by head."""
    first = 0 if window is None else max(0, position - window + 1)
    out = []
    for head in range(HEADS):
        group = head // (HEADS // KV_HEADS)
        scores = keys[group, first : position + 1] @ query[head] * 0.7
        out.append(scores.softmax(0) @ values[group, first : position + 1])
    return torch.stack(out)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("slots", [[0, 1], [0, 2], [1, 3]])
def test_decode_and_prefill_rows_of_one_step_equal_the_plain_sum(
    window: int | None, slots: list[int]
) -> None:
    random = torch.Generator().manual_seed(0)
    cache = SlotCache(1, KV_HEADS, DIM, torch.device("cpu"), torch.float32)
    cache.reserve(6, 20)
    for tensor in (cache.keys[0], cache.values[0]):
        tensor.copy_(torch.randn(tensor.shape, generator=random))
    positions = [4, 9]
    prefill = ((4, 0, 5), (5, 6, 4))  # one from the start, one that goes on
    context = SlotContext(
        cache, 2, torch.tensor(slots), torch.tensor(positions), slots == [0, 1], max(positions) + 1, prefill
    )
    places = [
        *zip(slots, positions, strict=True),
        *((s, start + i) for s, start, n in prefill for i in range(n)),
    ]
    query, key, value = (
        torch.randn(1, heads, len(places), DIM, generator=random) for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    out, _ = slot_attention(
        SimpleNamespace(layer_idx=0), query, key, value, None, 0.7, sliding_window=window, slots=context
    )
    assert out.shape == (1, len(places), HEADS, DIM)
    for i, (slot, position) in enumerate(places):
        assert torch.equal(cache.keys[0][slot, :, position], key[0, :, i])
        assert torch.equal(cache.values[0][slot, :, position], value[0, :, i])
        expected = plain(query[0, :, i], cache.keys[0][slot], cache.values[0][slot], position, window)
        torch.testing.assert_close(out[0, i], expected, atol=1e-5, rtol=1e-5)


def test_what_other_slots_hold_is_never_read(tmp_path: Path) -> None:
    cache = SlotCache(1, KV_HEADS, DIM, torch.device("cpu"), torch.float32)
    cache.reserve(2, 8)
    cache.keys[0][1] = float("nan")
    cache.values[0][1] = float("nan")
    context = SlotContext(cache, 1, torch.tensor([0]), torch.tensor([3]), True, 4, ())
    ones = torch.ones(1, HEADS, 1, DIM)
    small = torch.ones(1, KV_HEADS, 1, DIM)
    out, _ = slot_attention(SimpleNamespace(layer_idx=0), ones, small, small, None, slots=context)
    assert torch.isfinite(out).all()
    weight = F.softmax(torch.tensor([0.0, 0.0, 0.0, DIM**0.5]), dim=0)[-1]
    torch.testing.assert_close(out, weight.expand_as(out))
