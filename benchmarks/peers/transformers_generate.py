"""transformers' own `generate`, on a model of plain linears too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.instruments.timing import Contestant, OnStep
from brainstacks.base_files import quiet_transformers
from brainstacks.base_model import BaseModel


class _Streamer:
    """What `generate` asks of a streamer: the prompts come first, then one token per row and step."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step
        self._prompts_seen = False

    def put(self, ids: torch.Tensor) -> None:
        if self._prompts_seen:
            self._on_step({row: [token] for row, token in enumerate(ids.flatten().tolist())})
        self._prompts_seen = True

    def end(self) -> None:
        """Nothing is held back."""


def transformers_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    device: torch.device,
    *,
    before: Callable[[], None] = lambda: None,
    **options: Any,
) -> Contestant:
    """transformers' `generate`, greedy, on a static batch of prompts of one length.

    Args:
        before: called before each run.
        options: for `generate`, besides.
    """
    ids = torch.tensor([list(prompt) for prompt in prompts], device=device)

    def generate(tokens: int, on_step: OnStep) -> None:
        before()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            streamer=_Streamer(on_step),
            **options,
        )

    return Contestant(generate, rows=len(prompts))


def dequantized(base: BaseModel, dtype: torch.dtype) -> Any:
    """The values of `base` as a model of plain linears.

    Args:
        base: loaded and not run yet (its weights may be packed then); it becomes that model.
    """
    if base.quantization in ("none", "native"):
        return base.model.to(dtype)
    with quiet_transformers():
        return base.model.dequantize().to(dtype)
