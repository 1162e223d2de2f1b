"""Blocks give the very values that bitsandbytes dequantises, before and whatever the shape."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from brainstacks.layers.blocks import Blocks, int8_blocks, nf4_blocks

bitsandbytes = pytest.importorskip("bitsandbytes")


def nf4_linear(d_out: int, d_in: int, *, double: bool = True) -> Any:
    random = torch.Generator().manual_seed(d_in)
    module = bitsandbytes.nn.Linear4bit(
        d_in, d_out, bias=False, compute_dtype=torch.float32, compress_statistics=double, quant_type="nf4"
    )
    module.load_state_dict({"weight": torch.randn(d_out, d_in, generator=random).bfloat16()})
    return module.to("cpu").eval().requires_grad_(False)


def int8_linear(d_out: int, d_in: int) -> Any:
    random = torch.Generator().manual_seed(d_in)
    module = bitsandbytes.nn.Linear8bitLt(d_in, d_out, bias=False, has_fp16_weights=False)
    module.load_state_dict({"weight": torch.randn(d_out, d_in, generator=random)})
    return module.to("cpu").eval().requires_grad_(False)


def given(blocks: Blocks | None) -> Blocks:
    if blocks is None:
        raise AssertionError("no blocks")
    return blocks


def test_values_are_scale_times_level_plus_offset() -> None:
    random = np.random.default_rng(0)
    codes = random.integers(0, 16, (3, 32)).astype(np.uint8)
    levels, scales, offsets = (random.normal(size=s).astype(np.float32) for s in (16, (3, 2), (3, 2)))
    found = Blocks(codes, levels, scales, offsets, 16).values()
    for i, j in np.ndindex(3, 32):
        assert found[i, j] == scales[i, j // 16] * levels[codes[i, j]] + offsets[i, j // 16]
    plain = Blocks(codes.astype(np.int8) - 8, None, scales, None, 16).values()
    assert plain.dtype == np.float32
    assert plain[2, 17] == scales[2, 1] * (int(codes[2, 17]) - 8)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(("d_out", "d_in"), [(96, 128), (5, 64), (576, 1536)])
def test_nf4_blocks_are_what_bitsandbytes_dequantises(d_out: int, d_in: int, double: bool) -> None:
    module = nf4_linear(d_out, d_in, double=double)
    blocks = given(nf4_blocks(module))
    state = module.weight.quant_state
    state.dtype = torch.float32
    exact = bitsandbytes.functional.dequantize_4bit(module.weight.data, state).numpy()
    assert blocks.block == 64
    assert blocks.codes.dtype == np.uint8
    assert blocks.codes.shape == (d_out, d_in)
    assert blocks.scales.shape == (d_out, d_in // 64)
    assert np.array_equal(blocks.values(), exact)


def test_int8_blocks_are_each_rows_scale_times_its_codes() -> None:
    module = int8_linear(24, 128)
    exact = module.weight.CB.float() * (module.weight.SCB[:, None].float() / 127)
    for _ in range(2):
        blocks = given(int8_blocks(module))
        assert (blocks.block, blocks.scales.shape) == (64, (24, 2))
        assert np.array_equal(blocks.values(), exact.numpy())
        with torch.no_grad():
            module(torch.zeros(1, 128))  # moves the weight's scales


def test_rows_that_are_no_whole_blocks_have_none() -> None:
    """bitsandbytes' own CPU kernel takes the wrong scales there; what it computes has no such form."""
    assert nf4_blocks(nf4_linear(8, 96)) is None
    assert int8_blocks(int8_linear(4, 24)) is None


def test_a_weight_that_is_not_quantised_or_was_repacked_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear holds no NF4 weight"):
        nf4_blocks(nn.Linear(64, 64))
    with pytest.raises(ValueError, match="holds no int8 weight"):
        int8_blocks(bitsandbytes.nn.Linear8bitLt(64, 64, has_fp16_weights=False))
    module = nf4_linear(32, 64)
    module.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match="repacked by a forward"):
        nf4_blocks(module)


def test_blocks_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        given(nf4_blocks(nf4_linear(32, 64))).block = 32  # type: ignore[misc]
