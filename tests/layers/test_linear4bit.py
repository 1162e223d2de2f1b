"""Shortened 4-bit linears give the same bits, and let go when they are told to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from brainstacks.cpu import cpu
from brainstacks.layers.linear4bit import shorten


@pytest.fixture
def linear() -> Any:
    """A 4-bit linear that bitsandbytes packs on this machine."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    module = bitsandbytes.nn.Linear4bit(
        128, 64, bias=False, compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4"
    )
    module.load_state_dict({"weight": torch.randn(64, 128).bfloat16()})
    module = module.to("cpu").eval().requires_grad_(False)
    if not (module.support_avx512bf16_for_cpu and cpu().has("avx512bf16")):
        pytest.skip("bitsandbytes packs 4-bit weights on CPUs with AVX512-BF16 only")
    return module


@pytest.mark.parametrize("tokens", [1, 2, 16, 70])
@torch.inference_mode()
def test_a_shortened_linear_gives_the_same_bits(linear: Any, tokens: int) -> None:
    x = torch.randn(1, tokens, 128).bfloat16()
    before = linear(x)
    shorten([linear])
    assert torch.equal(linear(x), before)


@torch.inference_mode()
def test_other_dtypes_take_the_whole_forward(linear: Any) -> None:
    x = torch.randn(1, 3, 128)
    before = linear(x)
    shorten([linear])
    assert linear(x).dtype == torch.float32
    assert torch.equal(linear(x), before)


def test_what_is_not_packed_stays_as_it_is(linear: Any) -> None:
    plain = nn.Linear(8, 8)
    with_bias = (
        type(linear)(64, 32, bias=True, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu").eval()
    )
    linear.support_avx512bf16_for_cpu = False  # as a base that is loaded for training
    shorten([plain, with_bias, linear])
    assert not any("forward" in vars(module) for module in (plain, with_bias, linear))


def test_undoing_leaves_no_trace(linear: Any) -> None:
    restore = shorten([linear])
    assert "forward" in vars(linear)
    restore()
    assert "forward" not in vars(linear)
