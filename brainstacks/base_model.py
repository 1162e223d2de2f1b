"""A base model, loaded once, quantised, and identified."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from brainstacks.base_files import base_name, default_quantization, is_gguf, locate, quiet_transformers
from brainstacks.base_identity import BaseIdentity
from brainstacks.checkpoint import Checkpoint, native_checkpoint, nf4_checkpoint, outline, plain_checkpoint
from brainstacks.config import Quantization
from brainstacks.device import use
from brainstacks.device_map import Part, resolve_devices
from brainstacks.errors import ConfigError, UnsupportedModel
from brainstacks.fingerprint import fingerprint
from brainstacks.gguf_checkpoint import GgufCheckpoint
from brainstacks.layers.bitsandbytes_linears import settle
from brainstacks.layers.blocks import Blocks, int8_blocks, nf4_blocks
from brainstacks.layers.dequantized import dequantize
from brainstacks.layers.projections import Site, decoder_layers, find_sites, projection_dims
from brainstacks.pretrained import load_model, load_tokenizer, parts_of
from brainstacks.tokenizer import ChatTokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseModel:
    """A loaded base.

    Attributes:
        model: the transformers model in eval mode; no parameter takes a gradient.
        device: of its ids and logits, and of all its layers where there is no map.
        device_map: of the layers, where they lie on several devices.
        tokenizer: its tokenizer, or None where the base has none (logits and ids still work).
        name: short name for people and for model names in the API.
        identity: what stacks are checked against.
        sites: the seven projections of every layer.
        gguf: the file whose own quantisation it has, where `quantization` is native.
    """

    model: Any
    tokenizer: Any
    name: str
    identity: BaseIdentity
    quantization: Quantization
    device: torch.device
    dtype: torch.dtype
    sites: dict[tuple[int, str], Site]
    gguf: GgufCheckpoint | None = None
    device_map: tuple[Part, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """All layers, by where they are; one part where that is one device."""
        return self.device_map or (Part(self.device, range(self.identity.layers)),)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """On which it lies, each once, `device` first."""
        return tuple(dict.fromkeys(part.device for part in self.parts))

    @property
    def where(self) -> str:
        """`devices`, for people."""
        return ", ".join(map(str, self.devices))

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
        found = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        if found is None:
            found = self.model.config.get_text_config().eos_token_id
        return (found,) if isinstance(found, int) else tuple(found or ())

    def blocks(self, layer: int, projection: str) -> Blocks | None:
        """The weight of one projection as codes with scales; None where it is held as values."""
        module = self.sites[layer, projection].module
        if self.gguf is not None:
            return self.gguf.blocks(layer, projection)
        kind = type(module).__name__  # in `in_float32`, values have taken their place
        if kind == "Linear4bit":
            return nf4_blocks(module)
        return int8_blocks(module) if kind == "Linear8bitLt" else None

    def head_blocks(self) -> Blocks | None:
        """Those of the output head, which a GGUF file alone quantises."""
        return None if self.gguf is None else self.gguf.head_blocks()

    def chat_tokenizer(self) -> ChatTokenizer:
        """Made once. Raises UnsupportedModel: the base has no tokenizer."""
        if self.tokenizer is None:
            raise UnsupportedModel(f"the base {self.name!r} has no tokenizer; add its files, or give ids")
        return self._chat_tokenizer

    @cached_property
    def _chat_tokenizer(self) -> ChatTokenizer:
        return ChatTokenizer(self.tokenizer, self.eos_token_ids)


def load_base(
    base: str | os.PathLike[str],
    *,
    quantization: Quantization | None = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    device_map: str | None = None,
) -> BaseModel:
    """Load `base` once, quantised.

    Args:
        base: local directory, hub id, `.gguf` file, or a name in `PACKAGED`.
        quantization: `nf4` (with double quantisation), `int8`, `none`, or `native`, which computes with the
            values that a GGUF file's own blocks stand for; None is `default_quantization`.
        device: `auto` takes CUDA when there is one. A GPU becomes the calling thread's own.
        dtype: of activations and unquantised weights; None takes bfloat16 for a quantised base, the
            checkpoint's own dtype for an unquantised one, and float32 for a native one, whose values are
            products of a float16 and a code: bfloat16 would round each of them a second time. A GPU without
            bfloat16 gets float16 in its place.
        device_map: for a base that is larger than a device: its layers go over several, `auto` over all GPUs,
            `cuda:0,cuda:1` over these, of one kind. The first takes ids and gives logits.

    Raises:
        ConfigError: an unknown quantization or device, both `device` and `device_map`, or `native` for a base
            that is no GGUF file.
        UnsupportedModel: the base cannot be found, read, or lacks a projection.
    """
    quantization = quantization or default_quantization(base)
    if quantization not in get_args(Quantization):
        raise ConfigError(
            f"quantization is {quantization!r}; it is one of {', '.join(get_args(Quantization))}",
            param="quantization",
        )
    devices = resolve_devices(device, device_map)
    torch_device = devices[0]
    use(torch_device)
    started = time.perf_counter()
    checkpoint = _checkpoint(base, quantization, torch_device, dtype)
    directory = checkpoint.directory
    parts = parts_of(directory, devices)
    with quiet_transformers():
        model = load_model(directory, quantization, torch_device, dtype, checkpoint.quantized, parts)
        tokenizer = load_tokenizer(directory)
    if checkpoint.gguf is not None:
        checkpoint.gguf.fill(model)
    model.eval().requires_grad_(False)
    settle(model, torch_device)
    sites = find_sites(model)
    identity = _identity(base_name(base), checkpoint, model, sites)
    _log.info("loaded %s (%s) in %.1f s", identity.id, quantization, time.perf_counter() - started)
    for part in parts:
        _log.info("layers %d to %d are on %s", part.layers[0], part.layers[-1], part.device)
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        name=base_name(base),
        identity=identity,
        quantization=quantization,
        device=torch_device,
        dtype=model.get_input_embeddings().weight.dtype,  # type: ignore[operator]
        sites=sites,
        gguf=checkpoint.gguf,
        device_map=parts,
    )


def in_float32(base: BaseModel) -> BaseModel:
    """`base` with its own values, quantised or not, in float32 (`layers.dequantized`).

    Args:
        base: freshly loaded: its model is changed in place, and must have had no forward.
    """
    dequantize(base.model)
    if base.gguf is not None:  # whose values a narrower dtype has rounded
        base.gguf.fill(base.model)
    return dataclasses.replace(base, dtype=torch.float32, sites=find_sites(base.model))


def identify_base(base: str | os.PathLike[str]) -> BaseIdentity:
    """The identity of `base`, read from its files; no weight is loaded into a model.

    Raises:
        UnsupportedModel: as for `load_base`.
    """
    checkpoint = plain_checkpoint(locate(base))
    model = outline(checkpoint.directory)
    return _identity(base_name(base), checkpoint, model, find_sites(model))


def load_chat_tokenizer(base: str | os.PathLike[str]) -> ChatTokenizer:
    """The tokenizer of `base` alone, without its weights.

    Raises:
        UnsupportedModel: the base cannot be found, or has no tokenizer.
    """
    from transformers import AutoConfig, GenerationConfig

    directory = plain_checkpoint(locate(base)).directory
    with quiet_transformers():
        tokenizer = load_tokenizer(directory)
        if tokenizer is None:
            raise UnsupportedModel(f"the base {base_name(base)!r} has no tokenizer; add its files")
        has_own = (directory / "generation_config.json").is_file()
        settings = (GenerationConfig if has_own else AutoConfig).from_pretrained(directory)
    ends = getattr(settings, "eos_token_id", None)
    return ChatTokenizer(tokenizer, ends if isinstance(ends, list) else [] if ends is None else [ends])


def parse_dtype(name: str | None) -> torch.dtype | None:
    """`float32`, `bfloat16` or `float16`; None for `auto` or nothing. Raises ConfigError."""
    if name is None or name == "auto":
        return None
    if name not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"dtype is {name!r}; it is auto, float32, bfloat16 or float16", param="dtype")
    return getattr(torch, name)  # type: ignore[no-any-return]


# --- loading -------------------------------------------------------------------------------------


def _checkpoint(
    base: str | os.PathLike[str], quantization: Quantization, device: torch.device, dtype: torch.dtype | None
) -> Checkpoint:
    """The files to load. A GGUF file is quantised once for the CPU; CUDA takes less time than a disk."""
    if quantization == "native" and not is_gguf(base):
        raise ConfigError(
            f"quantization is native, which is a GGUF file's own, and {base_name(base)!r} is no such file; "
            "take a .gguf file or a packaged base, or nf4, int8 or none",
            param="quantization",
        )
    located = locate(base)
    if quantization == "native":
        return native_checkpoint(located)
    if located.gguf_digest is None or quantization != "nf4" or device.type != "cpu":
        return plain_checkpoint(located)

    def quantise(directory: Path) -> Any:
        with quiet_transformers():
            return load_model(directory, "nf4", device, dtype)

    return nf4_checkpoint(located, dtype or torch.bfloat16, quantise)


def _identity(
    name: str, checkpoint: Checkpoint, model: nn.Module, sites: dict[tuple[int, str], Site]
) -> BaseIdentity:
    config = model.config.get_text_config()  # type: ignore[union-attr,operator]
    return BaseIdentity(
        id=name,
        fingerprint=checkpoint.fingerprint or fingerprint(checkpoint.directory, config),
        architecture=str(config.model_type),
        layers=len(decoder_layers(model)),
        dims=projection_dims(sites),
        hidden_size=int(config.hidden_size),
    )
