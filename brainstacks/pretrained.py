"""transformers' model and tokenizer of a checkpoint's directory, on a device or on several."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from brainstacks.checkpoint import outline
from brainstacks.config import Quantization
from brainstacks.device import gpu, half
from brainstacks.device_map import Part, spread
from brainstacks.errors import UnsupportedModel
from brainstacks.layers.bitsandbytes_linears import quantization_config
from brainstacks.layers.model_parts import connect, end_bytes, module_devices
from brainstacks.layers.projections import decoder_layers

_log = logging.getLogger(__name__)


def parts_of(directory: Path, devices: Sequence[torch.device]) -> tuple[Part, ...]:
    """How the layers of a checkpoint are to lie on several devices; nothing where there is one.

    Raises:
        ConfigError: there are more of them than layers.
    """
    if len(devices) == 1:
        return ()
    model = outline(directory)
    return spread(len(decoder_layers(model)), devices, end_bytes(model))


def load_model(
    directory: Path,
    quantization: Quantization,
    device: torch.device,
    dtype: torch.dtype | None,
    quantized_files: bool = False,
    parts: Sequence[Part] = (),
) -> nn.Module:
    """The model of a checkpoint.

    Args:
        quantized_files: it is in NF4 already.
        parts: of the layers, where they are to lie on several devices, the first of which is `device`.

    Raises:
        UnsupportedModel: transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM

    chosen = dtype or _dtype(directory, quantization, device)
    places = module_devices(outline(directory), parts) if parts else {"": device}
    options: dict[str, Any] = {"device_map": places, "attn_implementation": _attention(directory)}
    if not quantized_files and quantization in ("nf4", "int8"):
        options["quantization_config"] = quantization_config(quantization, device, chosen)
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(directory, dtype=chosen, **options)
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{directory.name!r} could not be loaded: {error}") from error
    if parts:
        connect(model, parts)
    return model


def load_tokenizer(directory: Path) -> Any:
    """Its tokenizer; None where it has none."""
    from transformers import AutoTokenizer

    if not any((directory / f).is_file() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    return AutoTokenizer.from_pretrained(directory)


def _attention(directory: Path) -> str:
    """PyTorch's own; it knows no soft caps."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory).get_text_config()
    return "sdpa" if getattr(config, "attn_logit_softcapping", None) is None else "eager"


def _dtype(directory: Path, quantization: Quantization, device: torch.device) -> torch.dtype | str:
    """Of a base whose dtype nobody chose; `auto` is the checkpoint's own."""
    from transformers import AutoConfig

    own: torch.dtype | str = torch.bfloat16
    if quantization in ("none", "native"):
        own = torch.float32 if quantization == "native" else "auto"
    if half(device) == torch.bfloat16:
        return own
    named = AutoConfig.from_pretrained(directory).get_text_config().dtype if own == "auto" else own
    if named != torch.bfloat16:
        return own
    _log.warning("%s has no bfloat16 of its own: float16 takes its place; --dtype chooses", gpu(device))
    return torch.float16
