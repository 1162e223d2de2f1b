"""bitsandbytes' 4-bit linears on the CPU, without the Python that surrounds their kernel.

Around its kernel, bitsandbytes checks the weight's state, dtypes and the bias at every call, which is a good
part of it for one token of a small base. Once a weight is packed for inference none of that changes any more,
so `shorten` calls the operator with the weight's own state, which gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def shorten(modules: Iterable[nn.Module]) -> Callable[[], None]:
    """Shorten the forward of those modules that are packed 4-bit linears; the others stay as they are.

    Returns:
        a function that undoes it.
    """
    changed = [module for module in modules if _shorten(module)]

    def restore() -> None:
        for module in changed:
            del module.forward

    return restore


@torch.inference_mode()
def _shorten(module: Any) -> bool:
    if not getattr(module, "support_avx512bf16_for_cpu", False) or module.bias is not None:
        return False
    if module.weight.device.type != "cpu" or module.compute_dtype not in (None, torch.bfloat16):
        return False
    module(torch.zeros(1, module.in_features, dtype=torch.bfloat16))  # the first forward packs the weight
    state = module.weight.quant_state
    if not getattr(state, "packing_format_for_cpu", False) or state.nested:
        return False
    operator = torch.ops.bitsandbytes.gemv_4bit.default
    weight, shape, absmax, code, block = (
        module.weight.data,
        state.shape,
        state.absmax,
        state.code,
        state.blocksize,
    )
    whole = module.forward

    def forward(x: Tensor) -> Tensor:
        if x.dtype is not torch.bfloat16 or x.requires_grad:
            output: Tensor = whole(x)
            return output
        short: Tensor = operator(x, weight, shape, absmax, code, block)
        return short

    module.forward = forward
    return True
