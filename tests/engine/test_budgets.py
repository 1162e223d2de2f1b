"""What of a GPU's free memory goes to stacks, and what to keys and values; the GPU is made up."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.device_map import Part
from brainstacks.engine import budgets
from brainstacks.engine.block_manager import BLOCK_TOKENS
from brainstacks.engine.budgets import WORKSPACE, divide
from brainstacks.engine.runner.kv_cache import token_bytes
from brainstacks.errors import ConfigError
from tests.fake_cuda import GIB, FakeCuda

LONG = 1 << 30


def divided(base: BaseModel, free: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[int, int]:
    """Bytes for stacks, and tokens, where so many bytes are free beside `base` on a GPU."""
    FakeCuda(monkeypatch, free=free)
    on_gpu = replace(base, device=torch.device("cuda", 1))
    found = divide(on_gpu, EngineConfig(max_context=LONG, **options))
    if found.device_stack_bytes is None or found.kv_cache_tokens is None:
        raise AssertionError("a budget is open")
    return found.device_stack_bytes, found.kv_cache_tokens


def rest(base: BaseModel, free: int, prefill: int = EngineConfig.max_prefill_tokens) -> int:
    """What is left beside the memory of steps."""
    return free - WORKSPACE - 2 * 4 * prefill * base.vocab_size


def test_on_a_cpu_everything_stays_as_it_is_asked_for(tiny_base: BaseModel) -> None:
    config = EngineConfig()
    assert divide(tiny_base, config) is config


@pytest.mark.parametrize("free", [2 * GIB, 20 * GIB, 130 * GIB])
def test_stacks_get_three_tenths_and_keys_and_values_nine_tenths_of_the_rest(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: int
) -> None:
    with caplog.at_level(logging.INFO):
        stacks, tokens = divided(tiny_base, free, monkeypatch)
    left, token = rest(tiny_base, free), token_bytes(tiny_base)
    assert stacks == int(0.3 * left)
    assert 0 <= 0.9 * (left - stacks) - tokens * token < token
    assert stacks + tokens * token < left
    assert f"cuda:1 has {free / 1e9:.1f} GB free beside the base" in caplog.text
    assert f"for {tokens} tokens" in caplog.text


def test_what_is_asked_for_is_taken_and_the_other_gets_of_what_it_leaves(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, token = 20 * GIB, token_bytes(tiny_base)
    left = rest(tiny_base, free)
    stacks, tokens = divided(tiny_base, free, monkeypatch, device_stack_bytes=4 * GIB)
    assert (stacks, tokens) == (4 * GIB, int(0.9 * (left - 4 * GIB)) // token)
    many = int(0.9 * left) // token
    stacks, tokens = divided(tiny_base, free, monkeypatch, kv_cache_tokens=many)
    assert (stacks, tokens) == (left - many * token, many)
    assert divided(tiny_base, free, monkeypatch, kv_cache_tokens=16)[0] == int(0.3 * left)
    both = {"device_stack_bytes": 0, "kv_cache_tokens": 100}
    assert divided(tiny_base, free, monkeypatch, **both) == (0, 100)


@pytest.mark.parametrize("first", [GIB, 9 * GIB, 40 * GIB])
def test_of_several_devices_the_one_with_the_least_for_each_of_its_layers_decides(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, first: int
) -> None:
    FakeCuda(monkeypatch)
    one, two = torch.device("cuda", 0), torch.device("cuda", 1)
    sizes = {one: first, two: 20 * GIB}
    monkeypatch.setattr(budgets, "free_bytes", sizes.__getitem__)
    # One of four layers is on the first device, three on the second.
    identity = replace(tiny_base.identity, layers=4)
    base = replace(
        tiny_base, identity=identity, device=one, device_map=(Part(one, range(1)), Part(two, range(1, 4)))
    )
    logits = 2 * 4 * EngineConfig.max_prefill_tokens * base.vocab_size
    room = [first - WORKSPACE - logits, (20 * GIB - WORKSPACE) / 3]
    config = EngineConfig(max_context=LONG)
    if min(room) <= 0:
        with pytest.raises(ConfigError, match=r"cuda:0, cuda:1 has 4\.3 GB free"):
            divide(base, config)
        return
    with caplog.at_level(logging.INFO):
        found = divide(base, config)
    if found.device_stack_bytes is None or found.kv_cache_tokens is None:
        raise AssertionError("a budget is open")
    assert found.device_stack_bytes == int(0.3 * int(4 * min(room)))
    used = found.device_stack_bytes + found.kv_cache_tokens * token_bytes(base)
    assert used / 4 <= room[0]
    assert 3 * used / 4 <= 20 * GIB - WORKSPACE
    assert "cuda:0, cuda:1 has" in caplog.text


def test_a_longer_prefill_leaves_less(tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    short = divided(tiny_base, 4 * GIB, monkeypatch, max_prefill_tokens=1024)
    long = divided(tiny_base, 4 * GIB, monkeypatch, max_prefill_tokens=8192)
    assert long < short


def test_no_more_tokens_are_taken_than_two_full_batches_have(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeCuda(monkeypatch, free=130 * GIB)
    on_gpu = replace(tiny_base, device=torch.device("cuda", 1))
    assert divide(on_gpu, EngineConfig(max_batch_size=3, max_context=100)).kv_cache_tokens == 600
    assert divide(on_gpu, EngineConfig(max_batch_size=3)).kv_cache_tokens == 6 * tiny_base.max_context


@pytest.mark.parametrize(
    ("free", "options"),
    [
        (WORKSPACE, {}),
        (20 * GIB, {"device_stack_bytes": 21 * GIB}),
        (20 * GIB, {"device_stack_bytes": 20 * GIB, "kv_cache_tokens": BLOCK_TOKENS}),
        (20 * GIB, {"kv_cache_tokens": 1 << 40}),
        (20 * GIB, {"max_prefill_tokens": 1 << 28}),
    ],
)
def test_what_the_device_has_not_got_is_refused_with_what_it_has(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch, free: int, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=rf"cuda:1 has {free / 1e9:.1f} GB free.*--device-stack-bytes"):
        divided(tiny_base, free, monkeypatch, **options)
