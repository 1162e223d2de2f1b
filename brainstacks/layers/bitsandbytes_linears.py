"""What bitsandbytes' quantised linears need before they serve, on a CPU or a GPU."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import nn

from brainstacks.config import Quantization
from brainstacks.errors import UnsupportedModel
from brainstacks.layers.quantize4bit import speed_up_quantize_4bit

log = logging.getLogger(__name__)

LARGE_ACTIVATION = 6.0
"""The magnitude from which on LLM.int8() calls an activation an outlier (arXiv 2208.07339)."""

NESTED_BLOCK = 256
"""Scales that share a scale of their own, the one number that bitsandbytes' kernels know."""


def quantization_config(quantization: Quantization, device: torch.device, dtype: torch.dtype | str) -> Any:
    """How transformers is to load a base in `nf4` or `int8` that computes in `dtype` on `device`.

    int8 on a CPU keeps columns of large activations in 16 bits, for which bitsandbytes looks at the whole
    batch: a row's neighbours decide about them. On a GPU each linear would wait for the answer too. Without
    them every row has a scale of its own, and what is summed up is integers.
    """
    from transformers import BitsAndBytesConfig

    if quantization == "nf4":
        speed_up_quantize_4bit()
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    # It says at every layer of every forward that activations are cast, which is what int8 means.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return BitsAndBytesConfig(
        load_in_8bit=True, llm_int8_threshold=0.0 if device.type == "cuda" else LARGE_ACTIVATION
    )


def settle(model: nn.Module, device: torch.device) -> None:
    """Make the linears of a freshly loaded `model` compute in one form, with no more to say.

    Raises:
        UnsupportedModel: the checkpoint was quantised in a way that no kernel computes.
    """
    slow = []
    for name, module in model.named_modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Some CPUs would repack 4-bit weights at the first inference forward, after which no gradient
            # passes them, silently, and scales are rounded: one form of the weights on all machines.
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 -- not on nn.Module
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None:
            continue
        if state.nested and state.state2.blocksize != NESTED_BLOCK:
            raise UnsupportedModel(
                f"the scales of {name} are quantised in blocks of {state.state2.blocksize}; bitsandbytes "
                f"computes with blocks of {NESTED_BLOCK}: take the unquantised checkpoint"
            )
        if state.shape[1] % state.blocksize:
            slow.append(name)
    if slow and device.type == "cuda":
        log.warning(
            "rows of %d linears, such as %s, are no whole blocks: bitsandbytes has no fast kernel for them",
            len(slow),
            slow[0],
        )
        warnings.filterwarnings(
            "ignore", r"inner dimension .* is not aligned for fast kernel"
        )  # at every call
