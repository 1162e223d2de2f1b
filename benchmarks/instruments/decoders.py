"""Sizes of decoders that people serve: nothing of them is loaded."""

from __future__ import annotations

from typing import Any

from brainstacks.config import PROJECTIONS

LLAMA_3_8B = "Llama-3-8B"
GEMMA_3_12B = "Gemma-3-12B"
SMOLLM2_135M = "SmolLM2-135M"

_SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    LLAMA_3_8B: ("llama", {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 8192,
    }),
    GEMMA_3_12B: ("gemma3_text", {
        "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 262208, "max_position_embeddings": 131072,
        "sliding_window": 1024, "query_pre_attn_scalar": 256,
    }),
    SMOLLM2_135M: ("llama", {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "max_position_embeddings": 8192,
    }),
}  # fmt: skip
"""From their published configurations."""

NAMES = tuple(_SIZES)


def decoder_config(name: str, **changes: Any) -> Any:
    """transformers' configuration of one of `NAMES`."""
    from transformers import AutoConfig

    family, sizes = _SIZES[name]
    return AutoConfig.for_model(family, **sizes | changes)


def projection_sizes(config: Any) -> dict[str, tuple[int, int]]:
    """(d_in, d_out) of every projection."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = (
        heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads)
    )
    sizes = (
        (hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden),
        (hidden, inner), (hidden, inner), (inner, hidden),
    )  # fmt: skip
    return dict(zip(PROJECTIONS, sizes, strict=True))
