"""The paged cache copies whole blocks, and says so when there is no room for it."""

from __future__ import annotations

import os

import pytest
import torch

from brainstacks.base_model import BaseModel
from brainstacks.engine.block_pool import BLOCK_TOKENS
from brainstacks.engine.kv_cache import MOST_TOKENS, PagedCache, affordable_tokens, attention_shape
from brainstacks.errors import ConfigError


def cache(blocks: int = 5) -> PagedCache:
    return PagedCache(
        layers=3, blocks=blocks, kv_heads=2, head_dim=4, device=torch.device("cpu"), dtype=torch.float32
    )


def test_there_is_a_block_of_keys_and_values_per_layer_and_one_for_padding() -> None:
    made = cache()
    assert len(made.keys) == len(made.values) == 3
    assert all(t.shape == (6, 2, BLOCK_TOKENS, 4) for t in (*made.keys, *made.values))
    assert all(t.is_contiguous() for t in made.values)
    assert all(t.transpose(2, 3).is_contiguous() for t in made.keys), "a dimension's 16 lie side by side"


def test_a_copy_takes_keys_and_values_of_every_layer_and_touches_no_other_block() -> None:
    made = cache()
    for i, tensor in enumerate((*made.keys, *made.values)):
        tensor.copy_(torch.arange(6.0)[:, None, None, None].expand_as(tensor) + 10 * i)
    made.copy([(2, 4), (1, 5)])
    for i, tensor in enumerate((*made.keys, *made.values)):
        assert tensor[:, 0, 0, 0].tolist() == [10 * i + block for block in (0, 1, 2, 3, 2, 1)]
        assert bool((tensor == tensor[:, :1, :1, :1]).all())


def test_a_cache_that_does_not_fit_names_its_size_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*args: object, **kwargs: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch, "empty", no_room)
    with pytest.raises(ConfigError, match=r"kv_cache_tokens is 80, which takes 0\.0 GB.*fewer"):
        cache()


def test_without_a_size_half_of_what_is_free_is_taken_and_no_more_than_is_of_use(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, dim = attention_shape(tiny_base)
    token = 2 * tiny_base.identity.layers * heads * dim * tiny_base.dtype.itemsize
    free = {"SC_PAGE_SIZE": token}
    monkeypatch.setattr(os, "sysconf", free.__getitem__)
    free["SC_AVPHYS_PAGES"] = 2000
    assert affordable_tokens(tiny_base) == 1000
    free["SC_AVPHYS_PAGES"] = 10**9
    assert affordable_tokens(tiny_base) == MOST_TOKENS
    free["SC_AVPHYS_PAGES"] = 0
    assert affordable_tokens(tiny_base) == BLOCK_TOKENS
