"""A base of a real decoder's size with random weights, made on its device: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.instruments.decoders import decoder_config
from brainstacks.base_identity import BaseIdentity
from brainstacks.base_model import BaseModel
from brainstacks.layers.projections import decoder_layers, find_sites, projection_dims


def random_base(decoder: str, device: torch.device, layers: int | None = None) -> BaseModel:
    """In NF4 with double quantisation, computing in bfloat16.

    Args:
        decoder: one of `decoders.NAMES`.
        layers: of it; None for all.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import AutoModelForCausalLM

    config = decoder_config(decoder, **({} if layers is None else {"num_hidden_layers": layers}))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    sites = find_sites(model)
    names = {module: name for name, module in model.named_modules()}
    for site in sites.values():
        values = torch.randn(site.d_out, site.d_in, dtype=torch.bfloat16, device=device) * site.d_in**-0.5
        linear = Linear4bit(
            site.d_in, site.d_out, bias=False, compute_dtype=torch.bfloat16, compress_statistics=True,
            quant_type="nf4", device="meta",
        )  # fmt: skip
        # Quantised as it comes to the device: no more than one layer's values are there at a time.
        weight = Params4bit(
            values, requires_grad=False, compress_statistics=True, quant_type="nf4", module=linear
        )
        linear.weight = weight.to(device)
        parent, _, name = names[site.module].rpartition(".")
        setattr(model.get_submodule(parent), name, linear)
    for module in model.modules():
        for name, tensor in list(module.named_parameters(recurse=False)):
            if tensor.is_meta:
                values = (
                    torch.randn(tensor.shape, dtype=torch.bfloat16, device=device) * tensor.shape[-1] ** -0.5
                )
                if tensor.dim() == 1:  # a norm's
                    values = torch.ones_like(values)
                setattr(module, name, torch.nn.Parameter(values, requires_grad=False))
    _fill_buffers(model, config, device)
    model.tie_weights()
    model.eval().requires_grad_(False)
    sites = find_sites(model)
    identity = BaseIdentity(
        decoder,
        "0" * 64,
        config.model_type,
        len(decoder_layers(model)),
        projection_dims(sites),
        config.hidden_size,
    )
    return BaseModel(model, None, decoder, identity, "nf4", device, torch.bfloat16, sites)


def _fill_buffers(model: torch.nn.Module, config: Any, device: torch.device) -> None:
    """Rotary embeddings' and Gemma's scales, which no file has: those of a decoder of one small layer."""
    from transformers import AutoModelForCausalLM

    sizes = config.to_dict() | {"vocab_size": 8, "num_hidden_layers": 1, "layer_types": None}
    small = AutoModelForCausalLM.from_config(type(config)(**sizes))
    there = dict(small.named_buffers())
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            parent, _, last = name.rpartition(".")
            model.get_submodule(parent).register_buffer(last, there[name].to(device), persistent=False)
