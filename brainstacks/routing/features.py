"""Prompt -> router features; the one implementation, used in training and in serving (method 6).

    features = w_mid * h[mid] + w_last * h[last],  mid = layers // 2

with h the base's hidden states (h[0] the embeddings, h[last] after the final norm), no stack applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from brainstacks.layers.projections import decoder_layers


def mixed_hidden_states(
    model: Any, input_ids: Tensor, *, mid_weight: float = 0.45, last_weight: float = 0.55, **kwargs: Any
) -> Tensor:
    """One forward of the decoder, keeping two hidden states of all.

    Rows may be padded on the right: attention is causal, so padding reaches no real position.

    Args:
        input_ids: [B, T] int64.
        kwargs: passed to the decoder.

    Returns:
        [B, T, d] float32.
    """
    mid, last = decoder_states(model, input_ids=input_ids, **kwargs)
    return mid_weight * mid.float() + last_weight * last.float()


def decoder_states(model: Any, **inputs: Any) -> tuple[Tensor, Tensor]:
    """One forward of the decoder: its middle and its last hidden state, [B, T, d] in its dtype, on the device
    of the last."""
    layers = decoder_layers(model)
    captured: list[Tensor] = []

    def capture(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        captured.append(args[0] if args else kwargs["hidden_states"])

    # The input of layer k is hidden state k: no other layer's output needs to be kept.
    handle = layers[len(layers) // 2].register_forward_pre_hook(capture, with_kwargs=True)
    try:
        last: Tensor = model.get_decoder()(use_cache=False, **inputs).last_hidden_state
    finally:
        handle.remove()
    return captured[0].to(last.device), last  # of a base on several devices they are on two


def pad_prompts(prompts: Sequence[Sequence[int]], length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first `length` tokens of each prompt, padded on the right.

    Returns:
        input_ids [B, T] int64 and mask [B, T] bool, true at real tokens; T is the longest kept prompt.
    """
    kept = [list(p[:length]) for p in prompts]
    width = max(len(p) for p in kept)
    input_ids = torch.tensor([p + [0] * (width - len(p)) for p in kept], device=device)
    mask = torch.tensor([[True] * len(p) + [False] * (width - len(p)) for p in kept], device=device)
    return input_ids, mask


def pad_features(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Features [T_i, d] of several prompts, padded on the right.

    Returns:
        features [B, T, d] and mask [B, T] bool, true at real tokens; T is the longest T_i.
    """
    padded = pad_sequence(list(features), batch_first=True)
    lengths = torch.tensor([len(one) for one in features], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
