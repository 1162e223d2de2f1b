"""A quantised model's own values in float32, for a CPU that is slow at bfloat16.

Quantised linears dequantise their weight to bfloat16 at every call and multiply in bfloat16. A CPU without
instructions for that emulates them: a forward takes many times, a backward a hundred times what float32
takes. A plain linear that holds the very same values in float32 computes what they stand for, unrounded, and
passes gradients. int8 linears also round their input, which a plain one does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

QUANTIZED = ("Linear4bit", "Linear8bitLt")
"""bitsandbytes' classes, by name: it is imported only where it is used."""


def is_quantized(module: nn.Module) -> bool:
    return type(module).__name__ in QUANTIZED


def dequantized(linear: nn.Module) -> nn.Linear:
    """A frozen float32 `nn.Linear` with the values of `linear`, [..., d_in] -> [..., d_out].

    Args:
        linear: plain, 4-bit or 8-bit. A 4-bit one has its values rounded to the dtype that it was made from,
            as at each of its calls.

    Raises:
        ValueError: bitsandbytes has repacked the weight for inference.
    """
    source: Any = linear
    with torch.device("meta"):
        plain = nn.Linear(source.in_features, source.out_features, bias=source.bias is not None)
    plain.weight = nn.Parameter(_values(source).float(), requires_grad=False)
    if source.bias is not None:
        plain.bias = nn.Parameter(source.bias.detach().float(), requires_grad=False)
    return plain.eval()


def dequantize(model: Any) -> None:
    """Make `model`, a transformers model, one of float32, in place, linear by linear: nothing is there twice.

    Tied weights stay tied.

    Raises:
        ValueError: bitsandbytes has repacked a weight for inference: a forward came first.
    """
    found = [name for name, module in model.named_modules() if is_quantized(module)]
    for name in found:
        model.set_submodule(name, dequantized(model.get_submodule(name)))
    if found:
        model.hf_quantizer.remove_quantization_config(model)  # else it refuses to be cast
    model.float()


def float32_bytes(model: nn.Module) -> int:
    """Bytes of the weights that `dequantize` leaves."""
    whole = {id(p): p.numel() for p in model.parameters()}
    for module in model.modules():
        if is_quantized(module):
            linear: Any = module
            whole[id(linear.weight)] = linear.in_features * linear.out_features
    return 4 * sum(whole.values())


def _values(linear: Any) -> Tensor:
    """[d_out, d_in] of any dtype; what a plain linear holds is not copied."""
    import bitsandbytes.functional as bnb

    weight = linear.weight
    if type(linear).__name__ == "Linear4bit":
        state = weight.quant_state
        if getattr(state, "packing_format_for_cpu", False):
            raise ValueError("the weight is repacked for inference; dequantise before the first forward")
        four: Tensor = bnb.dequantize_4bit(weight.data, state)
        return four
    if type(linear).__name__ == "Linear8bitLt":
        scales = linear.state.SCB if linear.state.SCB is not None else weight.SCB  # moved by the first call
        eight: Tensor = bnb.int8_vectorwise_dequant(weight.data, scales)
        return eight
    plain: Tensor = weight.detach()
    return plain
