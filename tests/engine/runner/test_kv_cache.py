"""The paged cache copies whole blocks, and says so when there is no room for it."""

from __future__ import annotations

import os

import pytest
import torch

from brainstacks.base_model import BaseModel
from brainstacks.device_map import Part
from brainstacks.engine.block_manager import BLOCK_TOKENS
from brainstacks.engine.runner.kv_cache import (
    LANES,
    MOST_TOKENS,
    PagedCache,
    VectorCache,
    affordable_tokens,
    attention_shape,
)
from brainstacks.errors import ConfigError

LAYOUTS = (PagedCache, VectorCache)


def cache(layout: type[PagedCache], blocks: int = 5, head_dim: int = 20) -> PagedCache:
    cpu = torch.device("cpu")
    parts = [Part(cpu, range(0, 1)), Part(cpu, range(1, 3))]
    return layout(parts, blocks, kv_heads=2, head_dim=head_dim, dtype=torch.float32)


@pytest.mark.parametrize(
    ("layout", "keys", "values"),
    [
        (PagedCache, (BLOCK_TOKENS, 20), (BLOCK_TOKENS, 20)),
        (VectorCache, (2 * LANES, BLOCK_TOKENS), (2, BLOCK_TOKENS, LANES)),
    ],
)
def test_there_is_a_block_of_keys_and_values_per_layer_and_one_for_padding(
    layout: type[PagedCache], keys: tuple[int, ...], values: tuple[int, ...]
) -> None:
    made = cache(layout)
    assert len(made.keys) == len(made.values) == 3
    assert all(t.shape == (6, 2, *keys) for t in made.keys)
    assert all(t.shape == (6, 2, *values) for t in made.values)
    assert all(t.is_contiguous() for t in (*made.keys, *made.values))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head_dim", [3, 16, 20, 64])
def test_what_is_written_to_some_places_is_read_there_and_nothing_else_changes(
    layout: type[PagedCache], head_dim: int
) -> None:
    made = cache(layout, head_dim=head_dim)
    for tensor in (*made.keys, *made.values):
        tensor.fill_(7.0)
    key, value = torch.randn(2, 2, 4, head_dim)
    made.write(1, torch.tensor([3, 3, 1, 0]), torch.tensor([5, 6, 0, 15]), key, value)
    for held, given in zip(made.read(1, torch.tensor([[1, 3], [4, 0]])), (key, value), strict=True):
        assert held.shape == (2, 2, 2 * BLOCK_TOKENS, head_dim)
        expected = torch.full(held.shape, 7.0)
        expected[0, :, 0] = given[:, 2]
        expected[0, :, BLOCK_TOKENS + 5 : BLOCK_TOKENS + 7] = given[:, :2]
        expected[1, :, BLOCK_TOKENS + 15] = given[:, 3]
        assert torch.equal(held, expected)
    for layer in (0, 2):
        assert bool((made.keys[layer] == 7.0).all())
        assert bool((made.values[layer] == 7.0).all())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_takes_keys_and_values_of_every_layer_and_touches_no_other_block(
    layout: type[PagedCache],
) -> None:
    made = cache(layout)
    for i, tensor in enumerate((*made.keys, *made.values)):
        tensor.copy_((torch.arange(6.0) + 10 * i).view(6, *[1] * (tensor.dim() - 1)).expand_as(tensor))
    made.copy([(2, 4), (1, 5)])
    for i, tensor in enumerate((*made.keys, *made.values)):
        assert tensor.flatten(1)[:, 0].tolist() == [10 * i + block for block in (0, 1, 2, 3, 2, 1)]
        assert bool((tensor.flatten(1) == tensor.flatten(1)[:, :1]).all())


def test_a_cache_that_does_not_fit_names_its_size_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*args: object, **kwargs: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch, "empty", no_room)
    with pytest.raises(ConfigError, match=r"kv_cache_tokens is 80, which takes 0\.0 GB.*fewer"):
        cache(PagedCache)


def test_without_a_size_half_of_what_is_free_is_taken_and_no_more_than_is_of_use(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, dim = attention_shape(tiny_base)
    assert dim == 8
    token = 2 * tiny_base.identity.layers * heads * LANES * tiny_base.dtype.itemsize  # filled up to a vector
    free = {"SC_PAGE_SIZE": token}
    monkeypatch.setattr(os, "sysconf", free.__getitem__)
    free["SC_AVPHYS_PAGES"] = 2000
    assert affordable_tokens(tiny_base) == 1000
    free["SC_AVPHYS_PAGES"] = 10**9
    assert affordable_tokens(tiny_base) == MOST_TOKENS
    free["SC_AVPHYS_PAGES"] = 0
    assert affordable_tokens(tiny_base) == BLOCK_TOKENS
