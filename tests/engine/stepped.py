"""A backend over a tiny base and stacks of many shapes, driven row by row, and what it ought to give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brainstacks.base_model import BaseModel, load_base
from brainstacks.config import Backend, EngineConfig, Quantization
from brainstacks.engine.block_manager import blocks_for
from brainstacks.engine.runner import backend
from brainstacks.engine.runner.batch import StepBatch, build
from brainstacks.engine.runner.kv_cache import new_cache
from brainstacks.engine.scheduler import Row
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.packed_stack import StackTensors
from tests.engine.completions import completion
from tests.tiny import bank_of, plain_logits, random_stack, save_base, stack_config, tiny_model

BLOCKS = 40

Weights = Mapping[str, float]

MIX: list[Weights] = [
    {"plain": 1.0, "wide": 0.5},
    {},
    {"one": -0.7, "lora": 0.4},
    {"plain": 0.3, "one": 0.3, "wide": 0.3, "few": 1.0},
    {"few": 0.9},
]
"""What the rows of a batch are composed of."""
LENGTHS = (1, 9, 33, 17, 80)
"""Tokens of their prompts."""


class Stepped:
    """A backend over a tiny base, which is driven row by row."""

    def __init__(
        self,
        directory: Path,
        name: Backend,
        family: str = "llama",
        quantization: Quantization = "none",
        exact: bool = True,
        dtype: torch.dtype = torch.float32,
        device_map: str | None = None,
        **changes: Any,
    ) -> None:
        saved = save_base(directory / "base", family, tokenizer=False, **changes)
        place = {"device": "cpu"} if device_map is None else {"device_map": device_map}
        self.base = load_base(saved, quantization=quantization, dtype=dtype, **place)
        hooks = CompositionHooks(self.base.sites)
        hooks.attach()
        self.stacks = stacks_for(self.base)
        self.bank = bank_of(self.stacks, dtype)
        self.new_cache = new_cache(self.base, BLOCKS)
        config = EngineConfig(backend=name, exact=exact)
        self.backend = backend.choose(self.base, hooks, self.new_cache, config)
        for tensor in (*self.backend.cache.keys, *self.backend.cache.values):
            tensor.fill_(float("nan"))
        self.free = np.random.default_rng(0).permutation(np.arange(1, BLOCKS + 1)).tolist()

    def rows(self, prompts: Sequence[Sequence[int]], weights: Sequence[Weights]) -> list[Row]:
        """Of each prompt all tokens, with all logits wanted, in blocks of their own."""
        rows = []
        for prompt, row in zip(prompts, weights, strict=True):
            one = completion(prompt)
            one.weights, one.scores_prompt = row, True
            one.blocks.extend(self.free.pop() for _ in range(blocks_for(len(prompt))))
            rows.append(Row(one, 0, len(prompt)))
        return rows

    def run(self, rows: Sequence[Row]) -> list[Tensor]:
        """Logits [count, V] of each row."""
        batch = build(rows)
        found = self.compute(batch).split(list(batch.wanted_counts))
        return [found[batch.rows.index(row)] for row in rows]

    @torch.inference_mode()
    def compute(self, batch: StepBatch) -> Tensor:
        return self.backend.run(batch, self.bank).clone()

    @torch.inference_mode()
    def hidden_states(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        return self.backend.hidden_states(batch)

    def logits(self, prompts: Sequence[Sequence[int]], weights: Sequence[Weights]) -> list[Tensor]:
        return self.run(self.rows(prompts, weights))


def stacks_for(base: BaseModel) -> dict[str, StackTensors]:
    """Of several shapes and rounds."""
    shapes = {
        "plain": stack_config(),
        "one": stack_config(rank=5, experts=1, top_k=1),
        "lora": stack_config(rank=20, experts=1, top_k=1),
        "all": stack_config(rank=16, experts=3, top_k=3),
        "wide": stack_config(rank=20, experts=4, top_k=3),
        "few": stack_config(rank=3, experts=5, projections=("q_proj", "v_proj", "o_proj", "down_proj")),
    }
    return {
        name: random_stack(base.identity.dims, i, rounds=1 + i % 2, config=replace(config, layers=2))
        for i, (name, config) in enumerate(shapes.items())
    }


def cut(row: Row, *counts: int) -> list[Row]:
    """The same tokens in runs of so many."""
    starts = np.cumsum([row.start, *counts[:-1]]).tolist()
    return [Row(row.completion, start, count) for start, count in zip(starts, counts, strict=True)]


def expected(
    family: str, prompt: Sequence[int], stacks: Mapping[str, StackTensors], weights: Weights, **changes: Any
) -> Tensor:
    chosen = [(stacks[name], weight) for name, weight in weights.items()]
    return plain_logits(tiny_model(family, **changes), prompt, chosen)


def assert_close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Relative to how far the logits of a position spread."""
    assert found.shape == wanted.shape
    assert torch.isfinite(found).all()
    spread = wanted.std(-1, keepdim=True)
    assert float(((found - wanted).abs() / spread).max()) <= tolerance
