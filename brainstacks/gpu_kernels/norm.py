"""Root-mean-square normalisation in one launch, where PyTorch's operations take eight.

    y = x / sqrt(mean(x^2) + eps) * (w + offset)

computed in float32. `rounded`: what w multiplies is rounded to x's dtype first, as Llama has it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from brainstacks.gpu_kernels.configuration import TYPES, Configuration
from brainstacks.gpu_kernels.launch import operator


@triton.jit
def norm_kernel(
    x, weight, out,
    SIZE: tl.constexpr, EPS: tl.constexpr, OFFSET: tl.constexpr, ROUNDED: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * SIZE
    lane = tl.arange(0, LANES)
    there = lane < SIZE
    value = tl.load(x + at + lane, there, 0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, 0) / SIZE + EPS)
    if ROUNDED:
        value = value.to(out.dtype.element_ty).to(tl.float32)
    scale = tl.load(weight + lane, there, 0.0).to(tl.float32) + OFFSET
    tl.store(out + at + lane, (value * scale).to(out.dtype.element_ty), there)


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float, rounded: bool) -> Tensor:
    """[..., d] of x's dtype.

    Args:
        x: [..., d]; weight: [d].
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    _operator(x.view(-1, x.shape[-1]), weight, out, eps, offset, rounded)
    return out


def _launch(x: Tensor, weight: Tensor, out: Tensor, eps: float, offset: float, rounded: bool) -> None:
    constants = _constants(x.shape[-1], eps, offset, rounded)
    norm_kernel[(len(x),)](x, weight, out, **constants, num_warps=_warps(x.shape[-1]))


_operator = operator(
    "rms_norm(Tensor x, Tensor weight, Tensor(a!) out, float eps, float offset, bool rounded) -> ()", _launch
)


def _constants(size: int, eps: float, offset: float, rounded: bool) -> dict[str, float]:
    lanes = triton.next_power_of_2(size)
    return {"SIZE": size, "EPS": eps, "OFFSET": offset, "ROUNDED": rounded, "LANES": lanes}


def _warps(size: int) -> int:
    return 1 if size <= 256 else 8


def configuration(dtype: torch.dtype, size: int) -> Configuration:
    """As it is launched for vectors of so many."""
    name = TYPES[dtype]
    return Configuration(
        f"norm, {name}, {size}",
        norm_kernel,
        dict.fromkeys(("x", "weight", "out"), f"*{name}"),
        _constants(size, 1e-6, 0.0, True),
        _warps(size),
        stages=1,
    )
