"""Null spaces of small stacks on the tiny Llama, and plainly what these stacks read and write there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from brainstacks.config import Applies
from brainstacks.layers.hooks import CompositionHooks, DeltaSource
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.layers.projections import find_sites, projection_dims
from tests.tiny import bank_of, plain_delta, plainly_composed, random_stack, stack_config, tiny_model
from tests.training.examples import random_examples
from training.data.batches import Batch, collate
from training.recipe.settings import NullSpaceConfig
from training.rounds.null_space import NullSpace, measure

DIMS = projection_dims(find_sites(tiny_model()))
EARLIER = [
    random_stack(DIMS, seed=1, rounds=2),
    random_stack(DIMS, seed=2, config=stack_config(rank=3, experts=2, top_k=1)),
]
"""Two stacks of different shapes, 12 and 6 columns wide."""
EXAMPLES = random_examples(8)
BATCHES = [collate(EXAMPLES[:5]), collate(EXAMPLES[5:])]
SMALL = random_stack(DIMS, seed=3)
"""One of 6 columns."""


def measured(
    config: NullSpaceConfig,
    stacks: Sequence[StackTensors] = EARLIER,
    batches: Sequence[Batch] | None = None,
    applies: Applies = "everywhere",
) -> NullSpace:
    """Directions of `stacks` on the tiny Llama, in float64, for a new stack that acts there."""
    batches = BATCHES if batches is None else batches
    return measure(*hooked_model(), sources_of(stacks), batches, config, applies, ["chat", "code"])


def hooked_model() -> tuple[Any, CompositionHooks]:
    model = tiny_model().double()
    hooks = CompositionHooks(find_sites(model))
    hooks.attach()
    return model, hooks


def sources_of(stacks: Sequence[StackTensors]) -> list[DeltaSource]:
    by_name = {f"stack {i}": stack for i, stack in enumerate(stacks)}
    return [bank_of(by_name, torch.float64).bind([dict.fromkeys(by_name, 1.0)])] if stacks else []


def plain_inputs(
    stacks: Sequence[StackTensors], batch: Batch, tokens: Tensor | None = None
) -> dict[tuple[int, str], Tensor]:
    """What every projection reads at `tokens` [B, T] bool of `batch`, or the real ones: [tokens, d_in], under
    `stacks` at 1.0."""
    shown = batch.attention_mask if tokens is None else tokens
    model = tiny_model().double()
    inputs: dict[tuple[int, str], Tensor] = {}
    for key, site in find_sites(model).items():
        site.module.register_forward_pre_hook(
            lambda module, args, at=key: inputs.__setitem__(at, args[0][shown])
        )
    with torch.no_grad(), plainly_composed(model, [(stack, 1.0) for stack in stacks]):
        model(input_ids=batch.input_ids, use_cache=False)
    return inputs


def plain_deltas(
    stacks: Sequence[StackTensors], inputs: dict[tuple[int, str], Tensor]
) -> dict[tuple[int, str], Tensor]:
    """What `stacks` write there together, [tokens, d_out]."""
    return {
        at: torch.stack([plain_delta(stack, *at, x) for stack in stacks]).sum(0) for at, x in inputs.items()
    }


def energy_share(V: Tensor, vectors: Tensor) -> float:
    """||V^T z||^2 / ||z||^2 over all rows z of `vectors`."""
    return float((vectors.double() @ V.double()).square().sum() / vectors.double().square().sum())
