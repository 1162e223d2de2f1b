"""Tiny GGUF files of every supported family, with names and rows as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from brainstacks.tokenizer import _BYTE_OF
from tests.tiny import CHAT_TEMPLATE, tiny_model

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text")
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOKENS = (*_BYTE_OF, "he", *SPECIALS)
VOCAB = len(TOKENS)
CONTROL, NORMAL = 3, 1


def gguf_model(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """The transformers model whose weights go into the file."""
    return tiny_model(
        family,
        seed,
        **{
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 128 if family == "qwen3" else 16,  # transformers takes Qwen3's for granted
            "tie_word_embeddings": True,
            "eos_token_id": TOKENS.index("<|im_end|>"),
            "pad_token_id": TOKENS.index("<|endoftext|>"),
        }
        | changes,
    )


def save_gguf(
    path: Path,
    family: str = "llama",
    kinds: Sequence[Type] = (Type.Q4_1,),
    *,
    head: Type = Type.Q8_0,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write a tiny model.

    Args:
        kinds: how the projections are stored, one after the other in turn.
        head: how the embedding and the head are stored.
    """
    model = gguf_model(family, seed, **changes)
    architecture = {"gemma3_text": "gemma3"}.get(family, family)
    writer = gguf.GGUFWriter(path, architecture)
    _write_metadata(writer, model.config)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    tied = bool(model.config.tie_word_embeddings)
    turn = 0
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        values = tensor.to(torch.float32).numpy()
        if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = interleaved(values, 4 if "q_proj" in name else 2)
        if family == "gemma3_text" and name.endswith("norm.weight"):
            values = values + 1
        kind = Type.F32
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            kind = head
        elif name.endswith("proj.weight"):
            kind = kinds[turn % len(kinds)]
            turn += 1
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight", ".bias")),
            gguf.quantize(values, kind),
            raw_dtype=kind,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def interleaved(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a head in the order that llama.cpp rotates them in, as its converter permutes them."""
    return weights.reshape(heads, 2, -1, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)


def _write_metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(list(TOKENS))
    writer.add_token_types([CONTROL if token in SPECIALS else NORMAL for token in TOKENS])
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(TOKENS.index("<|im_end|>"))
    writer.add_pad_token_id(TOKENS.index("<|endoftext|>"))
    writer.add_chat_template(CHAT_TEMPLATE)
