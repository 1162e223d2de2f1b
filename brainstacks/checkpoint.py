"""The files that a base is loaded from; those of a GGUF file are made once and cached.

A GGUF file becomes a checkpoint as transformers has them, in bfloat16, and in NF4 also what bitsandbytes
makes of that, so that later starts read what the first one computed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from brainstacks.base_files import Located, quiet_transformers
from brainstacks.cache import Entry, cached
from brainstacks.fingerprint import fingerprint
from brainstacks.gguf_checkpoint import FAMILIES, GgufCheckpoint
from brainstacks.gguf_file import GgufFile

_FORMAT = "1"
"""Of the entries; raised when what is written here changes."""


@dataclass(frozen=True)
class Checkpoint:
    """Attributes:
    directory: with config.json, weights, and the tokenizer's files where there is one.
    fingerprint: of the base, where it is known without reading the weights.
    quantized: the weights are in NF4, and their configuration says so.
    gguf: the file that a model of these weights is to be filled from, for values that bfloat16 does not hold.
    """

    directory: Path
    fingerprint: str | None = None
    quantized: bool = False
    gguf: GgufCheckpoint | None = None


def plain_checkpoint(located: Located) -> Checkpoint:
    """The files of `located`, unquantised; a GGUF file is converted once and cached.

    Raises:
        UnsupportedModel: the GGUF file is damaged, or holds no model that is known.
    """
    if located.gguf_digest is None:
        return Checkpoint(located.path)

    def convert(directory: Path) -> Mapping[str, str]:
        with quiet_transformers():
            config = _convert(located.path, directory)
        return {"fingerprint": fingerprint(directory, config)}

    key = _key(located, "checkpoint", ("gguf", "transformers"))
    entry = cached(f"the converted checkpoint of {located.path.name}", key, convert)
    return _checkpoint(entry, quantized=False)


def nf4_checkpoint(located: Located, dtype: torch.dtype, quantise: Callable[[Path], Any]) -> Checkpoint:
    """The GGUF file of `located` in NF4 for the CPU, quantised once and cached.

    Args:
        dtype: of what stays unquantised, and that weights are quantised from.
        quantise: loads a directory's model, quantised, in that dtype.

    Raises:
        UnsupportedModel: as for `plain_checkpoint`.
    """

    def make(directory: Path) -> Mapping[str, str]:
        plain = plain_checkpoint(located)
        model = quantise(plain.directory)
        with quiet_transformers():
            model.save_pretrained(directory)
        for path in plain.directory.iterdir():
            if not (directory / path.name).exists():  # the tokenizer's
                shutil.copyfile(path, directory / path.name)
        return {"fingerprint": str(plain.fingerprint)}

    key = _key(located, "nf4", ("gguf", "transformers", "torch", "bitsandbytes"))
    # The order of a sum decides the last bit of the scales' mean, and the vector width decides the order.
    key |= {"dtype": str(dtype), "vectors": torch.backends.cpu.get_cpu_capability()}
    return _checkpoint(cached(f"{located.path.name} in NF4", key, make), quantized=True)


def native_checkpoint(located: Located) -> Checkpoint:
    """The files of a GGUF file whose own values and blocks are to be computed with.

    Raises:
        UnsupportedModel: as for `plain_checkpoint`, or it is of none of `FAMILIES`.
    """
    gguf = GgufCheckpoint(GgufFile(located.path))
    return replace(plain_checkpoint(located), gguf=gguf)


def outline(directory: Path) -> nn.Module:
    """The model of a checkpoint's configuration, on the device `meta`: without weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet_transformers(), torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    return model


def _checkpoint(entry: Entry, *, quantized: bool) -> Checkpoint:
    return Checkpoint(entry.directory, entry.facts["fingerprint"], quantized)


def _key(located: Located, form: str, packages: tuple[str, ...]) -> dict[str, str]:
    versions = {package: version(package) for package in packages}
    return {"file": str(located.gguf_digest), "form": form, "format": _FORMAT} | versions


def _convert(path: Path, directory: Path) -> Any:
    """Write the GGUF file `path` to `directory` in bfloat16; returns the model's configuration."""
    file = GgufFile(path)
    if file.metadata.get("general.architecture") not in FAMILIES:
        return _convert_by_transformers(path, directory)
    checkpoint = GgufCheckpoint(file)
    weights = {name: values.bfloat16() for name, values in checkpoint.weights()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    checkpoint.model.config.save_pretrained(directory)
    checkpoint.model.generation_config.save_pretrained(directory)
    checkpoint.tokenizer().save_pretrained(directory)
    return checkpoint.model.config


def _convert_by_transformers(path: Path, directory: Path) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype="bfloat16",
    )
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(directory)
    return model.config.get_text_config()
