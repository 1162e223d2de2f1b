"""A GGUF file as a transformers checkpoint: its configuration, weights by the model's names, and tokenizer.

What this gives is what transformers' own conversion gives, to the last byte, without the half minute that it
takes for the packaged base. It is left to convert the architectures that are not in `FAMILIES`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from brainstacks.errors import UnsupportedModel
from brainstacks.gguf_blocks import gguf_blocks, gguf_values
from brainstacks.gguf_file import GgufFile, GgufTensor
from brainstacks.layers.blocks import Blocks

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3")
"""`general.architecture` of the files that are read here; those of Mistral models say `llama`."""

_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_PROJECTIONS = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
"""Projection -> its name in the file."""

_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
} | {
    file_name: f"{'self_attn' if file_name.startswith('attn') else 'mlp'}.{projection}"
    for projection, file_name in _PROJECTIONS.items()
}
_GEMMA_LAYER = _LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


class GgufCheckpoint:
    """A GGUF file of one of `FAMILIES`.

    Raises:
        UnsupportedModel: the file is damaged, or lacks a value that its configuration needs.
    """

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        architecture = file.metadata.get("general.architecture")
        if architecture not in FAMILIES:
            raise UnsupportedModel(
                f"{file.path.name} holds the architecture {architecture!r}; known are {', '.join(FAMILIES)}"
            )
        self._architecture = str(architecture)

    @cached_property
    def model(self) -> Any:
        """The transformers model on the meta device, with its configurations."""
        from transformers import AutoConfig, AutoModelForCausalLM

        values = self._config()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(values.pop("model_type"), **values), dtype=torch.bfloat16
            )
        model.config.architectures = [type(model).__name__]
        return model

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight of the model by its name, float32; no `lm_head` where it is the embedding.

        Raises:
            UnsupportedModel: the file lacks one, or has it in another shape.
        """
        names = {self._name(name): tensor for name, tensor in self._file.tensors.items()}
        for name, expected in self.model.state_dict().items():
            if name == "lm_head.weight" and self._tied:
                continue
            tensor = names.get(name)
            if tensor is None or tensor.shape != tuple(expected.shape):
                raise UnsupportedModel(
                    f"{self._file.path.name} has {'no' if tensor is None else f'{tensor.shape} as'} {name}, "
                    f"which is {tuple(expected.shape)}; fetch the file again, or give another one"
                )
            yield name, torch.from_numpy(self._values(tensor))

    @torch.no_grad()
    def fill(self, model: nn.Module) -> None:
        """Give `model`, a model of this file, the file's values, in the dtype that it has.

        Raises:
            UnsupportedModel: as for `weights`.
        """
        parameters = dict(model.named_parameters())
        for name, values in self.weights():
            parameters[name].copy_(values)

    def blocks(self, layer: int, projection: str) -> Blocks | None:
        """The blocks of one linear as the model has it; None where the file holds none (`gguf_blocks`)."""
        return gguf_blocks(self._rows(self._file.tensors[f"blk.{layer}.{_PROJECTIONS[projection]}.weight"]))

    def head_blocks(self) -> Blocks | None:
        """Those of the output head, which may be the embedding's."""
        tensors = self._file.tensors
        return gguf_blocks(tensors["token_embd.weight" if self._tied else "output.weight"])

    def tokenizer(self) -> Any:
        """Of this file alone: files that lie beside it are not looked at, as transformers would."""
        from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
        from transformers.tokenization_utils_tokenizers import TokenizersBackend

        kind = TOKENIZER_MAPPING.get(type(self.model.config), None) or TokenizersBackend
        with tempfile.TemporaryDirectory(prefix="brainstacks-") as alone:
            (Path(alone) / "base.gguf").symlink_to(self._file.path.resolve())
            return kind.from_pretrained(alone, gguf_file="base.gguf")

    @property
    def _tied(self) -> bool:
        return "output.weight" not in self._file.tensors

    def _config(self) -> dict[str, Any]:
        """The configuration's values, by transformers' own tables."""
        from transformers.integrations.ggml import GGUF_CONFIG_DEFAULTS_MAPPING, GGUF_CONFIG_MAPPING

        metadata, architecture = self._file.metadata, self._architecture
        mistral = architecture == "llama" and metadata.get("general.name") == "mistral"
        family = "mistral" if mistral else architecture
        values: dict[str, Any] = {"tie_word_embeddings": self._tied}
        values |= GGUF_CONFIG_DEFAULTS_MAPPING.get(family, {})
        for key, value in metadata.items():
            group, _, rest = key.partition(".")
            renamed = GGUF_CONFIG_MAPPING.get(family if group == architecture else group, {}).get(rest)
            if renamed is not None:
                values[renamed] = value[0] if isinstance(value, list) and len(value) == 1 else value
        values["model_type"] = {"gemma3": "gemma3_text"}.get(family, family)
        values.setdefault("vocab_size", len(metadata.get("tokenizer.ggml.tokens", ())))
        return values

    def _name(self, name: str) -> str | None:
        """The model's name of a tensor of the file; None where the model has no such tensor."""
        stem, _, kind = name.rpartition(".")
        if stem in _WHOLE:
            return f"{_WHOLE[stem]}.{kind}"
        found = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        inner = (_GEMMA_LAYER if self._architecture == "gemma3" else _LAYER).get(found[2]) if found else None
        return f"model.layers.{found[1]}.{inner}.{kind}" if found and inner else None

    def _values(self, tensor: GgufTensor) -> NDArray[np.float32]:
        values = gguf_values(self._rows(tensor))
        if self._architecture == "gemma3" and tensor.name.endswith("norm.weight"):
            return values - 1  # llama.cpp keeps Gemma's norms with their one added
        return values if values.flags.writeable else values.copy()

    def _rows(self, tensor: GgufTensor) -> GgufTensor:
        """`tensor` with its rows in the model's order.

        llama.cpp rotates neighbours where transformers rotates halves, and so keeps the rows of a Llama's
        queries and keys interleaved.
        """
        found = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(weight|bias)", tensor.name)
        if self._architecture != "llama" or found is None:
            return tensor
        config = self.model.config
        heads = config.num_attention_heads if found[1] == "q" else config.num_key_value_heads
        rows = tensor.shape[0]
        order = np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
        data = tensor.data.reshape(rows, -1)[order].reshape(tensor.data.shape)
        return GgufTensor(tensor.name, tensor.type, tensor.shape, data)
