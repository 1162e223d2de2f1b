"""bfloat16 in compiled loops is PyTorch's, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor

from brainstacks.kernels.numbers import narrow, widen


def _widen_all(source: Any, out: Any) -> None:
    for i in range(source.shape[0]):
        out[i] = widen(source[i])


def _narrow_all(source: Any, out: Any) -> None:
    for i in range(source.shape[0]):
        out[i] = narrow(source[i], out[i])


widen_all, narrow_all = njit(_widen_all), njit(_narrow_all)


def bits(values: list[int]) -> Tensor:
    """float32 numbers by their bits."""
    return torch.from_numpy(np.array(values, np.uint32).view(np.float32))


def narrowed(values: Tensor) -> Tensor:
    """[n] float32 -> [n] bfloat16, by `narrow`."""
    out = np.zeros(len(values), np.uint16)
    narrow_all(values.numpy(), out)
    return torch.from_numpy(out.view(np.int16)).view(torch.bfloat16)


def assert_rounded_as_by_torch(values: Tensor) -> None:
    """NaN stays NaN; which of them is free."""
    found, expected = narrowed(values), values.bfloat16()
    nan = values.isnan()
    assert torch.equal(found.isnan(), nan)
    assert torch.equal(found[~nan].view(torch.int16), expected[~nan].view(torch.int16))


def test_every_bfloat16_widens_to_the_same_number_and_narrows_back() -> None:
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    wide = torch.zeros(2**16)
    widen_all(patterns.numpy().view(np.uint16), wide.numpy())
    assert torch.equal(wide.view(torch.int32), patterns.view(torch.bfloat16).float().view(torch.int32))
    assert_rounded_as_by_torch(wide)
    number = ~wide.isnan()
    assert torch.equal(narrowed(wide)[number].view(torch.int16), patterns[number])


def test_float32_passes_both_ways_unchanged() -> None:
    values = bits([0, 1, 0x80000000, 0x3F800001, 0x7F800000, 0xFF800000, 0x00800000, 0x7F7FFFFF])
    wide, back = torch.zeros_like(values), torch.zeros_like(values)
    widen_all(values.numpy(), wide.numpy())
    narrow_all(values.numpy(), back.numpy())
    assert torch.equal(wide.view(torch.int32), values.view(torch.int32))
    assert torch.equal(back.view(torch.int32), values.view(torch.int32))


def test_random_float32_of_every_magnitude_are_rounded_as_by_torch() -> None:
    random = np.random.default_rng(0)
    assert_rounded_as_by_torch(bits(random.integers(0, 2**32, 200_000, dtype=np.uint64).tolist()))


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([0x3F808000, 0x3F818000, 0xBF808000, 0xBF818000], id="ties to even"),
        pytest.param([0x3F807FFF, 0x3F808001, 0x3F817FFF, 0x3F818001], id="next to a tie"),
        pytest.param([0x00000001, 0x00008000, 0x00008001, 0x00018000, 0x807FFFFF], id="subnormal"),
        pytest.param([0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0xFF7FFFFF], id="overflow"),
        pytest.param([0x7F800000, 0xFF800000, 0x00000000, 0x80000000], id="infinities and zeros"),
        pytest.param([0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], id="NaN"),
    ],
)
def test_borders_are_rounded_as_by_torch(values: list[int]) -> None:
    assert_rounded_as_by_torch(bits(values))
