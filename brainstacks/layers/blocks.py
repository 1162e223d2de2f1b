"""A quantised linear's weight as codes with a scale per block: the one form that compiled products read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK = 64
"""Most inputs that one scale of a `Blocks` covers."""

LEAST_BLOCK = 16

_PAIRS = np.array([byte >> 4 | (byte & 15) << 8 for byte in range(256)], "<u2")
"""Of a byte its two 4-bit codes, a byte each: the high half first."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """A weight W `[d_out, d_in]`, `W = scale * level + offset`, where `level` is `levels[code]` or the code.

    Attributes:
        codes: `[d_out, d_in]`; uint8 in 0..15 where there are `levels`, else int8.
        levels: float32 `[16]`, what a code of 4 bits stands for; None where a code stands for itself.
        scales: float32 `[d_out, d_in // block]`, one per `block` consecutive inputs of an output.
        offsets: the same shape, or None for none.
        block: 16, 32 or 64; it divides d_in.
    """

    codes: NDArray[np.uint8] | NDArray[np.int8]
    levels: NDArray[np.float32] | None
    scales: NDArray[np.float32]
    offsets: NDArray[np.float32] | None
    block: int

    def values(self) -> NDArray[np.float32]:
        """W, float32 `[d_out, d_in]`: one rounding for the product and one for the sum."""
        levels = self.codes.astype(np.float32) if self.levels is None else self.levels[self.codes]
        blocked = levels.reshape(*self.scales.shape, self.block) * self.scales[..., None]
        if self.offsets is not None:
            blocked += self.offsets[..., None]
        return blocked.reshape(self.codes.shape)


def nf4_blocks(module: Any) -> Blocks | None:
    """The blocks of bitsandbytes' `Linear4bit` in NF4, equal to what it dequantises in float32.

    Returns:
        None where d_in is no multiple of the module's block. bitsandbytes quantises such a weight in blocks
        that run on into the next row, and its CPU kernel reads it with other blocks' scales (0.50.2:
        relative error 0.3 to 0.9); two ways to compute one linear must not differ by that.

    Raises:
        ValueError: the weight is not quantised yet, is not NF4, or was repacked for inference on the CPU,
            which rounds the scales to bfloat16; ask before the module's first forward.
    """
    import bitsandbytes.functional as bnb

    state = getattr(module.weight, "quant_state", None)
    if state is None or state.quant_type != "nf4":
        raise ValueError(f"{type(module).__name__} holds no NF4 weight")
    if getattr(state, "packing_format_for_cpu", False):
        raise ValueError("the weight was repacked by a forward; take its blocks before the first one")
    d_out, d_in = state.shape
    if d_in % state.blocksize:
        return None
    block = min(state.blocksize, BLOCK)
    packed = module.weight.data.view(torch.uint8).reshape(-1).cpu().numpy()
    absmax = state.absmax
    if state.nested:
        absmax = bnb.dequantize_blockwise(absmax, state.state2) + state.offset
    scales = np.repeat(absmax.float().cpu().numpy(), state.blocksize // block)
    return Blocks(
        codes=_PAIRS[packed].view(np.uint8).reshape(d_out, d_in),
        levels=state.code.float().cpu().numpy(),
        scales=scales.reshape(d_out, d_in // block),
        offsets=None,
        block=block,
    )


def int8_blocks(module: Any) -> Blocks | None:
    """The blocks of bitsandbytes' `Linear8bitLt`: its int8 weight, and each row's scale for every block.

    Returns:
        None where d_in has no divisor of at least 16 in common with 64.

    Raises:
        ValueError: the weight is not quantised yet.
    """
    # The first forward moves the scales from the weight to the module's state.
    largest = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
    codes = module.weight.data
    if largest is None or codes.dtype is not torch.int8:
        raise ValueError(f"{type(module).__name__} holds no int8 weight")
    d_in = codes.shape[1]
    block = math.gcd(d_in, BLOCK)
    if block < LEAST_BLOCK:
        return None
    scales = largest.float().cpu().numpy() / np.float32(127)
    return Blocks(
        codes=codes.cpu().numpy(),
        levels=None,
        scales=np.repeat(scales[:, None], d_in // block, axis=1),
        offsets=None,
        block=block,
    )
