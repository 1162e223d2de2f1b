"""bitsandbytes' NF4 quantisation on the CPU, the same bits in a fraction of the time.

bitsandbytes has no kernel for it and takes PyTorch's `bucketize`, a binary search per weight over temporaries
of the whole tensor. Comparing with the fifteen midpoints one after the other, in pieces that stay in a cache,
is a few vector instructions per weight.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

_PIECE = 1 << 16
"""Weights that are quantised at a time."""


@cache
def speed_up_quantize_4bit() -> None:
    """Give bitsandbytes a CPU kernel of its operator `quantize_4bit`, for this process."""
    from bitsandbytes._ops import register_kernel

    register_kernel("bitsandbytes::quantize_4bit", "cpu")(quantize_4bit)


def quantize_4bit(
    weights: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Codes and scales as bitsandbytes' operator of that name.

    Returns:
        two codes in a byte, uint8 `[n / 2, 1]`, the first in the high half; largest magnitude of every block,
        float32 `[n / blocksize]`.
    """
    if quant_type != "nf4" or quant_storage is not torch.uint8 or weights.numel() % (2 * blocksize):
        return reference_quantize_4bit(weights, blocksize, quant_type, quant_storage)
    from bitsandbytes.functional import get_4bit_type

    levels = get_4bit_type("nf4", device="cpu")
    midpoints = ((levels[:-1] + levels[1:]) / 2).numpy()
    blocks = weights.float().contiguous().numpy().reshape(-1, blocksize)
    packed = np.empty(weights.numel() // 2, np.uint8)
    largest = np.empty(len(blocks), np.float32)
    step = max(1, _PIECE // blocksize)
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        top = np.abs(part).max(axis=1)
        with np.errstate(invalid="ignore"):  # of infinite weights, which have no code that means them
            scaled = part * (np.float32(1) / np.maximum(top, np.float32(1e-38)))[:, None]
        np.clip(scaled, -1, 1, out=scaled)
        flat, codes = scaled.reshape(-1), np.full(scaled.size, 15, np.uint8)
        for midpoint in midpoints:
            codes -= (flat <= midpoint).view(np.uint8)
        largest[start : start + step] = top
        packed[start * blocksize // 2 : (start * blocksize + codes.size) // 2] = (codes[::2] << 4) | codes[
            1::2
        ]
    return torch.from_numpy(packed).unsqueeze(1), torch.from_numpy(largest)


def reference_quantize_4bit(
    weights: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> tuple[Tensor, Tensor]:
    """bitsandbytes' own, by PyTorch's operators."""
    operator = torch.ops.bitsandbytes.quantize_4bit.default
    default = torch._C.DispatchKey.CompositeExplicitAutograd
    packed, largest = operator._op_dk(default, weights, blocksize, quant_type, quant_storage)
    return packed, largest
