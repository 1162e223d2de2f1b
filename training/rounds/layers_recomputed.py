"""Gradient checkpointing of the decoder's layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from brainstacks.layers.projections import decoder_layers


@contextmanager
def layers_recomputed(model: Any, enabled: bool) -> Iterator[None]:
    """Within the block, the layers keep their inputs only, and run again in the backward pass.

    They also drop the keys and values that they are given, without a word: it is for a forward and its
    backward pass, and never for drawing an answer.
    """
    if not enabled:
        yield
        return
    model.activation_checkpointing_enable()
    for layer in decoder_layers(model):
        layer.training = True  # what transformers asks for; its modules stay in eval mode, without dropout
    try:
        yield
    finally:
        model.activation_checkpointing_disable()
        model.eval()
