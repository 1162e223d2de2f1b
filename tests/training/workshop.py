"""A workshop on a tiny base, and rounds to train in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brainstacks.base_model import BaseModel
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.packed_stack import StackTensors
from tests.tiny import bank_of, stack_config
from tests.training.examples import learnable_examples
from training.data.encoding import Example
from training.recipe.settings import DataRecipe, RoundConfig
from training.rounds.earlier_stacks import EarlierStacks
from training.rounds.inner_loop import train_round
from training.rounds.task import RoundResult, RoundTask
from training.rounds.workshop import Workshop
from training.runs.log import Log, NoLog
from training.runs.processes import ALONE
from training.runs.signals import StopRequest

CONFIG = stack_config(rank=2, experts=2, top_k=1)


def workshop_of(base: BaseModel, log: Log | None = None) -> Workshop:
    hooks = CompositionHooks(base.sites)
    hooks.attach()
    return Workshop(ALONE, base, hooks, log or NoLog(), StopRequest())


def round_config(**options: Any) -> RoundConfig:
    defaults = {"steps": 24, "batch_size": 4, "learning_rate": 5e-3, "warmup_steps": 2, "eval_every": 8}
    return RoundConfig(**{**defaults, **options})


def task_of(
    frozen: Sequence[StackTensors] = (),
    train: Sequence[Example] | None = None,
    packing: bool = False,
    **options: Any,
) -> RoundTask:
    """A round of one learnable answer on top of `frozen`; `options` are those of `RoundConfig`."""
    bank = bank_of({str(i): stack for i, stack in enumerate(frozen)})
    return RoundTask(
        domain="test",
        number=0,
        stack=CONFIG,
        train=train or learnable_examples(16),
        selection=learnable_examples(6, seed=1),
        data=DataRecipe(max_tokens=64, packing=packing),
        config=round_config(**options),
        earlier=EarlierStacks(bank, [str(i) for i in range(len(frozen))], "all", 0),
    )


def train(base: BaseModel, checkpoints: Path, **options: Any) -> RoundResult:
    return train_round(workshop_of(base), task_of(**options), checkpoints)
