"""Which decoders the compiled step computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from brainstacks.errors import UnsupportedModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1}

ROTARY = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose angles depend on the position alone."""


def check(config: Any, model: Any) -> None:
    """Raises UnsupportedModel: the compiled step does not compute this decoder."""
    if config.model_type not in FAMILIES:
        raise UnsupportedModel(f"the compiled step knows {', '.join(FAMILIES)}, not {config.model_type}")
    if activation(config) not in ACTIVATIONS:
        raise UnsupportedModel(f"the activation {activation(config)!r}")
    check_attention(config)
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise UnsupportedModel("attention scores with a soft cap")


def check_attention(config: Any) -> None:
    """Raises UnsupportedModel: angles depend on a text's length, or tokens look ahead; neither the compiled
    step has that, nor one that is captured once."""
    for rope in _ropes(config):
        if rope not in ROTARY:
            raise UnsupportedModel(f"the rotary embedding {rope!r}")
    if getattr(config, "use_bidirectional_attention", False):
        raise UnsupportedModel("attention in both directions")


def activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def by_layer_type(model: Any) -> bool:
    """Whether layers of different types have different angles."""
    return bool(model.config.get_text_config().model_type == "gemma3_text")


def _ropes(config: Any) -> Iterator[str]:
    """The kinds of rotary embedding."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    for one in nested or [parameters]:
        yield str(one.get("rope_type", "default"))
