"""Bases without a download: the packaged one, and decoders of any size with random weights."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_sections.setting import Setting
from benchmarks.instruments.decoders import SMOLLM2_135M, decoder_config
from benchmarks.instruments.options import DEFAULT_BASE
from brainstacks.base_identity import BaseIdentity
from brainstacks.base_model import BaseModel, load_base
from brainstacks.config import PROJECTIONS, Quantization
from brainstacks.device import resolve_device, use
from brainstacks.layers.bitsandbytes_linears import settle
from brainstacks.layers.projections import decoder_layers, find_sites, projection_dims
from brainstacks.layers.quantize4bit import speed_up_quantize_4bit

FAMILIES = ("llama", "gemma3_text", "qwen3")
TINY: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip
REHEARSED = TINY | {"num_hidden_layers": 1}
GEMMA: dict[str, Any] = {
    "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 16,
}  # fmt: skip
GAIN = 1.5
"""Of a weight's deviation, in 1/sqrt(d_in): greedy text is then varied."""


def tiny_config(setting: Setting, family: str) -> Any:
    """transformers' configuration of a decoder of that family that computes in no time."""
    from transformers import AutoConfig

    sizes = REHEARSED if setting.rehearse else TINY
    return AutoConfig.for_model(family, **sizes | (GEMMA if family.startswith("gemma") else {}))


def sized_config(setting: Setting, decoder: str, **changes: Any) -> Any:
    """That of a decoder that people serve; in a rehearsal, of a tiny one of its family."""
    return decoder_config(decoder, **(REHEARSED if setting.rehearse else {}) | changes)


def sized(setting: Setting, decoder: str, **changes: Any) -> BaseModel:
    """A decoder that people serve, in NF4 and bfloat16, with random weights, on the device; in a rehearsal a
    tiny one of its family, in float32: neither is fast on a CPU, or shows anything of a GPU's."""
    config = sized_config(setting, decoder, **changes)
    if setting.rehearse:
        return random_base(decoder, config, setting.device, torch.float32, "none", setting.seed)
    return random_base(decoder, config, setting.device, torch.bfloat16, "nf4", setting.seed)


def packaged(
    setting: Setting,
    device: str,
    quantization: Quantization = "nf4",
    dtype: torch.dtype | None = None,
) -> BaseModel:
    """The base that is packaged; in a rehearsal, random weights of its family."""
    if setting.rehearse:
        config = sized_config(setting, SMOLLM2_135M)
        return random_base("rehearsal", config, device, dtype or torch.float32, "none", setting.seed)
    return load_base(DEFAULT_BASE, quantization=quantization, device=device, dtype=dtype)


def elsewhere(base: BaseModel, device: str) -> BaseModel:
    """A copy of `base`, unquantised and not served yet, there."""
    there = resolve_device(device)
    use(there)
    model = copy.deepcopy(base.model).to(there)
    return dataclasses.replace(base, model=model, device=there, sites=find_sites(model))


def random_base(
    name: str, config: Any, device: str, dtype: torch.dtype, quantization: Quantization, seed: int
) -> BaseModel:
    """A base of random weights, made on the device layer by layer: no more than one of them is ever there
    unquantised.

    Args:
        quantization: none, or nf4 with double quantisation.
    """
    from transformers import AutoModelForCausalLM

    there = resolve_device(device)
    use(there)
    config = copy.deepcopy(config)
    layers = int(config.num_hidden_layers)
    with torch.device("meta"):
        layer_class: Any = type(decoder_layers(AutoModelForCausalLM.from_config(config))[0])
    config.num_hidden_layers = 0
    with there:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    config.num_hidden_layers = layers
    random = torch.Generator(there).manual_seed(seed)
    _fill(model, random)
    for number in range(layers):
        with there:
            layer = layer_class(config, number).to(dtype)
        _fill(layer, random)
        if quantization == "nf4":
            _quantize(layer, there)
        model.get_decoder().layers.append(layer)
    model.eval().requires_grad_(False)
    settle(model, there)
    sites = find_sites(model)
    identity = BaseIdentity(
        name, "0" * 64, config.model_type, layers, projection_dims(sites), config.hidden_size
    )
    return BaseModel(model, None, name, identity, quantization, there, dtype, sites)


@torch.no_grad()
def _fill(module: nn.Module, random: torch.Generator) -> None:
    """Norms multiply by about 1, whatever their formula makes of the weight that they begin with."""
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=random, device=parameter.device, dtype=parameter.dtype)
        if "norm" in name or name.endswith("bias"):
            parameter.add_(noise, alpha=0.1)
        else:
            parameter.copy_(noise * (GAIN * parameter.shape[-1] ** -0.5))


def _quantize(layer: nn.Module, device: torch.device) -> None:
    """Its projections to NF4, as `load_base` has them."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    speed_up_quantize_4bit()
    for name, module in list(layer.named_modules()):
        if name.rpartition(".")[2] not in PROJECTIONS or not isinstance(module, nn.Linear):
            continue
        weight = module.weight.data
        made = Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=weight.dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        values = Params4bit(
            weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=made
        )
        made.weight, made.bias = values.to(device), module.bias
        layer.set_submodule(name, made)
