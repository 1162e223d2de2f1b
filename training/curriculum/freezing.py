"""What a stack's file holds of its rounds: their tensors, and what its header says of their making."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.routing.signature import Signature
from training.data.encoding import Example
from training.recipe.recipe import DomainRecipe, Recipe
from training.reinforce.stage import StageResult
from training.rounds.signature import NoSignature, make_signature
from training.rounds.task import RoundResult
from training.runs.directory import SPLITTING


def named(rounds: Sequence[RoundResult]) -> dict[str, Tensor]:
    """The tensors of all rounds, named as a stack file names them."""
    return {
        f"rounds.{n}.{name}": tensor
        for n, result in enumerate(rounds)
        for name, tensor in (result.tensors or {}).items()
    }


def signed(
    base: BaseModel, recipe: Recipe, domain: str, train: Sequence[Example], report: Callable[[str], None]
) -> Signature | None:
    """The routing signature of `domain`; None, and `report` is told why, where there can be none."""
    try:
        return make_signature(base, train, recipe.router.sequence_length)
    except NoSignature as error:
        report(f"{domain}: no signature, so that only a router trained with it routes to it: {error.message}")
        return None


def hyperparameters(recipe: Recipe, domain: DomainRecipe, dtype: str) -> dict[str, Any]:
    """What decided the training of `domain`, as JSON values.

    Args:
        dtype: that it was computed in.
    """
    found = {
        **dataclasses.asdict(recipe.round_of(domain, 0)),
        "quantization": recipe.quantization,
        "compute": dtype,
        "max_tokens": recipe.data.max_tokens,
        "packing": recipe.data.packing,
        "splits": {name: getattr(recipe.data, name) for name in SPLITTING},
        "max_rounds": recipe.rounds_of(domain),
        "min_gain": recipe.min_gain,
        "earlier_stacks": recipe.earlier_stacks,
    }
    return {**found, "rl": [dataclasses.asdict(stage) for stage in domain.rl]} if domain.rl else found


def losses_of(result: RoundResult) -> dict[str, Any]:
    """What the header says of one round or stage."""
    found = {
        "selection_before": result.baseline,
        "selection_after": result.best,
        "stopped": result.stopped,
        "history": [{name: finite(value) for name, value in point.items()} for point in result.history],
    }
    if isinstance(result, StageResult):
        figures = {
            when: {k: finite(v) for k, v in getattr(result, when).items()} for when in ("before", "after")
        }
        return {**found, "method": result.method, **figures}
    return found


def finite(value: Any) -> Any:
    """`value`, or None: a round that diverged after its best snapshot has losses that have no JSON form."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
