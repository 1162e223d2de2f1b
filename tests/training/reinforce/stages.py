"""Stages on a tiny base: answers that are preferred, and prompts whose answers are verified."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from brainstacks.base_model import BaseModel
from brainstacks.config import Applies
from tests.training.workshop import task_of, workshop_of
from training.data.records import Message, Record
from training.recipe.reinforcement import DpoRecipe, GrpoRecipe, StageRecipe
from training.reinforce.items import StageRecords
from training.reinforce.stage import StageResult, StageTask
from training.reinforce.stages import stage_task, train_stage
from training.runs.log import Log


def record(number: int, response: str, rejected: str | None = None) -> Record:
    return Record(f"r{number}", (Message("user", f"question {number}"),), response, rejected)


def preferences(count: int = 12, held_out: int = 6, *, against: bool = False) -> StageRecords:
    """Always the same answer is preferred to the same other one: that of the selection records (`task_of`),
    or `against` it the other."""
    answers = ("not at all", "yes it is") if against else ("yes it is", "not at all")
    every = [record(i, *answers) for i in range(count + held_out)]
    return StageRecords(every[:count], every[count:])


def stage_of(
    base: BaseModel,
    stage: StageRecipe,
    records: StageRecords,
    applies: Applies = "everywhere",
    **options: Any,
) -> StageTask:
    """A stage on the base alone; `options` are those of `RoundConfig`."""
    round = task_of(**options)
    shape = dataclasses.replace(round.stack, applies=applies)
    round = dataclasses.replace(round, stack=shape, config=stage.round_of(round.config))
    return stage_task(round, stage, 0, records, base.chat_tokenizer())


def dpo(**changes: Any) -> DpoRecipe:
    given = {"steps": 12, "batch_size": 4, "learning_rate": 5e-3, "warmup_steps": 1, "eval_every": 4}
    return DpoRecipe(**{**given, "max_nll_rise": 9.0, **changes})


def grpo(**changes: Any) -> GrpoRecipe:
    given = {"steps": 8, "batch_size": 2, "learning_rate": 5e-3, "warmup_steps": 1, "eval_every": 4}
    return GrpoRecipe(**{**given, "max_nll_rise": 9.0, "group_size": 4, "max_new_tokens": 4, **changes})


def trained(
    base: BaseModel, task: StageTask, checkpoints: Path, log: Log | None = None, **stage: Any
) -> StageResult:
    changed = dataclasses.replace(task, stage=dataclasses.replace(task.stage, **stage))
    return train_stage(workshop_of(base, log), changed, checkpoints)
