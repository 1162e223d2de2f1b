"""The faster quantisation gives the bits that bitsandbytes gives, for every weight there can be."""

from __future__ import annotations

import pytest
import torch

from brainstacks.layers.quantize4bit import quantize_4bit, reference_quantize_4bit, speed_up_quantize_4bit

bitsandbytes = pytest.importorskip("bitsandbytes")


def same(weights: torch.Tensor, quant_type: str = "nf4", storage: torch.dtype = torch.uint8) -> bool:
    found = quantize_4bit(weights, 64, quant_type, storage)
    exact = reference_quantize_4bit(weights, 64, quant_type, storage)
    return all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(found, exact, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_and_scales_are_the_same_bits(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    assert same((torch.randn(576, 1536, generator=random) * 0.05).to(dtype))


def test_midpoints_and_their_neighbours_fall_on_the_same_side() -> None:
    levels = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    midpoints = (levels[:-1] + levels[1:]) / 2
    below, above = (torch.nextafter(midpoints, torch.full_like(midpoints, end)) for end in (-2.0, 2.0))
    row = torch.cat([midpoints, below, above, levels, torch.zeros(128 - 61)])
    assert same(torch.stack([row, row * 3, row / 7]))


def test_weights_of_no_size_and_of_no_number_are_treated_alike() -> None:
    weights = torch.zeros(4, 64)
    weights[1] = 1e-42
    weights[2, 5] = float("inf")
    weights[3, 7] = float("nan")
    assert same(weights)


def test_what_is_not_whole_blocks_or_not_nf4_is_left_to_bitsandbytes() -> None:
    weights = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    assert same(weights)
    assert same(torch.randn(4, 64), "fp4")
    assert same(torch.randn(4, 64), storage=torch.bfloat16)


def test_bitsandbytes_takes_it_for_its_own_once_it_is_told() -> None:
    speed_up_quantize_4bit()
    speed_up_quantize_4bit()
    weights = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    packed, state = bitsandbytes.functional.quantize_4bit(
        weights, quant_type="nf4", compress_statistics=False
    )
    assert torch.equal(packed, quantize_4bit(weights, 64, "nf4", torch.uint8)[0])
    assert torch.equal(state.absmax, weights.reshape(-1, 64).abs().amax(dim=1))
