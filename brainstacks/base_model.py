"""A base model, loaded once, quantised, and identified."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from brainstacks.base_files import base_name, quiet_transformers, resolve
from brainstacks.config import PROJECTIONS, Quantization
from brainstacks.cpu import cpu
from brainstacks.errors import ConfigError, UnsupportedModel
from brainstacks.layers.dequantized import dequantize
from brainstacks.layers.projections import Site, decoder_layers, find_sites, projection_dims
from brainstacks.stacks.artifact import BaseIdentity
from brainstacks.tokenizer import ChatTokenizer


@dataclass(frozen=True)
class BaseModel:
    """A loaded base.

    Attributes:
        model: the transformers model in eval mode; no parameter takes a gradient.
        tokenizer: its tokenizer, or None where the base has none (logits and ids still work).
        name: short name for people and for model names in the API.
        identity: what stacks are checked against.
        sites: the seven projections of every layer.
    """

    model: Any
    tokenizer: Any
    name: str
    identity: BaseIdentity
    quantization: Quantization
    device: torch.device
    dtype: torch.dtype
    sites: dict[tuple[int, str], Site]

    @property
    def dtype_name(self) -> str:
        """`float32`, say."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def max_context(self) -> int:
        return int(self.model.config.get_text_config().max_position_embeddings)

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token id that ends a completion; the generation config lists them all, where there is one."""
        generation = getattr(self.model, "generation_config", None)
        found = getattr(generation, "eos_token_id", None)
        if found is None:
            found = self.model.config.get_text_config().eos_token_id
        if found is None:
            return ()
        return (found,) if isinstance(found, int) else tuple(found)

    def chat_tokenizer(self) -> ChatTokenizer:
        """Raises UnsupportedModel: the base has no tokenizer."""
        if self.tokenizer is None:
            raise UnsupportedModel(
                f"the base {self.name!r} has no tokenizer; give token ids, or add the tokenizer's files"
            )
        return ChatTokenizer(self.tokenizer, self.eos_token_ids)


def load_base(
    base: str | os.PathLike[str],
    *,
    quantization: Quantization = "nf4",
    device: str = "auto",
    dtype: torch.dtype | None = None,
    trainable: bool = False,
) -> BaseModel:
    """Load `base` once, quantised.

    Args:
        base: local directory, hub id, `.gguf` file, or a name in `PACKAGED`.
        quantization: `nf4` (with double quantisation), `int8`, or `none`.
        device: `auto` takes CUDA when there is one.
        dtype: of activations and unquantised weights; None takes bfloat16 for a quantised base and the
            checkpoint's own dtype for an unquantised one.
        trainable: gradients must flow through the base to its inputs. On a CPU with AVX512-BF16,
            bitsandbytes repacks 4-bit weights at the first inference forward, after which no gradient
            passes them, silently; this keeps the unpacked, slower path.

    Raises:
        ConfigError: an unknown quantization or device.
        UnsupportedModel: the base cannot be found, read, or lacks a projection.
    """
    if quantization not in ("nf4", "int8", "none"):
        raise ConfigError(f"quantization is {quantization!r}; it is nf4, int8 or none", param="quantization")
    torch_device = resolve_device(device)
    directory = resolve(base)
    with quiet_transformers():
        model = _load_model(directory, quantization, torch_device, dtype)
        tokenizer = _load_tokenizer(directory)
    model.eval().requires_grad_(False)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu") and (
            trainable or not _packs(module) or not cpu().has("avx512bf16")
        ):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 -- not on nn.Module
    sites = find_sites(model)
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        name=base_name(base),
        identity=_identity(base_name(base), directory, model, sites),
        quantization=quantization,
        device=torch_device,
        dtype=model.get_input_embeddings().weight.dtype,  # type: ignore[operator]
        sites=sites,
    )


def in_float32(base: BaseModel) -> BaseModel:
    """`base` with its own values, quantised or not, in float32 (`layers.dequantized`).

    Args:
        base: freshly loaded: its model is changed in place, and must have had no forward.
    """
    dequantize(base.model)
    return dataclasses.replace(base, dtype=torch.float32, sites=find_sites(base.model))


def identify_base(base: str | os.PathLike[str]) -> BaseIdentity:
    """The identity of `base`, read from its files; no weight is loaded into a model.

    Raises:
        UnsupportedModel: as for `load_base`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = resolve(base)
    with quiet_transformers(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    return _identity(base_name(base), directory, model, find_sites(model))


def load_chat_tokenizer(base: str | os.PathLike[str]) -> ChatTokenizer:
    """The tokenizer of `base` alone, without its weights.

    Raises:
        UnsupportedModel: the base cannot be found, or has no tokenizer.
    """
    from transformers import AutoConfig, GenerationConfig

    directory = resolve(base)
    with quiet_transformers():
        tokenizer = _load_tokenizer(directory)
        if tokenizer is None:
            raise UnsupportedModel(f"the base {base_name(base)!r} has no tokenizer; add its files")
        has_own = (directory / "generation_config.json").is_file()
        settings = (GenerationConfig if has_own else AutoConfig).from_pretrained(directory)
    ends = getattr(settings, "eos_token_id", None)
    return ChatTokenizer(tokenizer, ends if isinstance(ends, list) else [] if ends is None else [ends])


def resolve_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; it is auto, cpu or cuda", param="device")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("device is cuda, and no CUDA device is available; use --device cpu", param="device")
    return torch.device(device)


def parse_dtype(name: str | None) -> torch.dtype | None:
    """`float32`, `bfloat16` or `float16`; None for `auto` or nothing. Raises ConfigError."""
    if name is None or name == "auto":
        return None
    if name not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"dtype is {name!r}; it is auto, float32, bfloat16 or float16", param="dtype")
    return getattr(torch, name)  # type: ignore[no-any-return]


# --- loading -------------------------------------------------------------------------------------


def _load_model(
    directory: Path, quantization: Quantization, device: torch.device, dtype: torch.dtype | None
) -> nn.Module:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantized = quantization != "none"
    chosen: torch.dtype | str = dtype or (torch.bfloat16 if quantized else "auto")
    config = None
    if quantization == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=chosen,
        )
    elif quantization == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
        # It says at every layer of every forward that activations are cast, which is what int8 means.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            directory,
            quantization_config=config,
            dtype=chosen,
            device_map={"": device},
            attn_implementation="sdpa",
        )
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{directory.name!r} could not be loaded: {error}") from error
    return model


def _packs(linear: Any) -> bool:
    """bitsandbytes' packed CPU kernel takes whole blocks of 32 outputs and 64 inputs, and asserts it."""
    return bool(linear.out_features % 32 == 0 and linear.in_features % 64 == 0)


def _load_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    if not any((directory / f).is_file() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    return AutoTokenizer.from_pretrained(directory)


# --- identity ------------------------------------------------------------------------------------


def _identity(
    name: str, directory: Path, model: nn.Module, sites: dict[tuple[int, str], Site]
) -> BaseIdentity:
    config = model.config.get_text_config()  # type: ignore[union-attr,operator]
    return BaseIdentity(
        id=name,
        fingerprint=_fingerprint(directory, config),
        architecture=str(config.model_type),
        layers=len(decoder_layers(model)),
        dims=projection_dims(sites),
        hidden_size=int(config.hidden_size),
    )


def _fingerprint(directory: Path, config: Any) -> str:
    """sha256 over the dimensions and the tensors that no quantisation touches (embeddings, norms, biases).

    Read from the checkpoint's files and taken as bfloat16, so that neither `quantization` nor `dtype`
    changes it. A tied `lm_head` is the embedding, and is not read twice.
    """
    digest = hashlib.sha256()
    dims = {
        key: getattr(config, key, None)
        for key in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
        )
    }
    digest.update(json.dumps(dims, sort_keys=True).encode())
    tied = bool(getattr(config, "tie_word_embeddings", False))
    where: dict[str, tuple[Path, str]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 -- safe_open is no mapping
                role = _text_role(key)
                if role is not None and not (tied and role == "lm_head.weight"):
                    where[role] = (path, key)
    if not where:
        raise UnsupportedModel(
            f"{directory.name!r} has no safetensors weights; convert the model to safetensors"
        )
    for role, (path, key) in sorted(where.items()):
        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(key).to(torch.bfloat16).contiguous()
        digest.update(f"{role}{tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy())
    return digest.hexdigest()


def _text_role(key: str) -> str | None:
    """The tensor's place in the text model, whatever prefix the checkpoint gives it; None when not hashed."""
    parts = key.split(".")
    if "vision_tower" in parts or "multi_modal_projector" in parts or "vision_model" in parts:
        return None
    if any(p in PROJECTIONS for p in parts) and parts[-1] != "bias":
        return None
    for anchor in ("layers", "embed_tokens", "norm", "lm_head"):
        if anchor in parts:
            return ".".join(parts[parts.index(anchor) :])
    return None
