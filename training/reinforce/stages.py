"""A stage of a recipe, whatever its method: its task, its training, what it did to every domain."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from brainstacks.errors import ConfigError
from brainstacks.layers.hooks import DeltaSource
from brainstacks.tokenizer import ChatTokenizer
from training.data.encoding import Example
from training.data.records import Record
from training.recipe.reinforcement import StageRecipe
from training.reinforce.dpo import PreferenceTraining
from training.reinforce.grpo import RewardTraining
from training.reinforce.items import Pair, Question, StageRecords, pairs_of, questions_of
from training.reinforce.stage import StageResult, StageTask, StageTraining
from training.rounds.inner_loop import carry_out
from training.rounds.objective import mean_nll
from training.rounds.task import RoundTask
from training.rounds.workshop import Workshop

TRAININGS: Mapping[str, type[StageTraining]] = {"dpo": PreferenceTraining, "grpo": RewardTraining}
"""By the method that a recipe names."""


def stage_task(
    round: RoundTask, stage: StageRecipe, place: int, records: StageRecords, tokenizer: ChatTokenizer
) -> StageTask:
    """The task of a stage whose round is `round`.

    Args:
        place: which of its domain's stages it is, from 0.

    Raises:
        ConfigError: no record fits the recipe's `max_tokens`.
    """
    limit = round.data.max_tokens
    items, held_out = (_items(stage, some, tokenizer, limit) for some in (records.train, records.held_out))
    if not items or not held_out:
        raise ConfigError(
            f"{round.domain}, stage {place + 1}: of {len(records.train)} records to learn from {len(items)} "
            f"fit {limit} tokens, and of {len(records.held_out)} held out {len(held_out)}; raise max_tokens "
            "under `data:`, or give others"
        )
    shared = {f.name: getattr(round, f.name) for f in dataclasses.fields(RoundTask)}
    shared["train"] = [item.example for item in items]
    shared["data"] = dataclasses.replace(round.data, packing=False)
    return StageTask(**shared, stage=stage, place=place, items=items, held_out=held_out)


def _items(
    stage: StageRecipe, records: Sequence[Record], tokenizer: ChatTokenizer, limit: int
) -> Sequence[Pair] | Sequence[Question]:
    read = pairs_of if stage.method == "dpo" else questions_of
    return read(records, tokenizer, limit)


def train_stage(workshop: Workshop, task: StageTask, checkpoints: Path, log_start: int = 0) -> StageResult:
    """Train a stage on top of what is frozen and of its domain's rounds, from the latest checkpoint or from
    the start. Arguments and errors are those of `training.rounds.inner_loop.train_round`."""
    training = TRAININGS[task.stage.method](workshop, task)
    carry_out(training, checkpoints, log_start)
    return training.result()


def with_effects(
    workshop: Workshop,
    task: StageTask,
    result: StageResult,
    examples: Mapping[str, Sequence[Example]],
    compositions: Sequence[Sequence[DeltaSource]],
) -> StageResult:
    """`result` with what it did to every domain, which the log is told too.

    Args:
        examples: of each domain.
        compositions: without the stage, and with it.
    """
    model, hooks = workshop.base.model, workshop.hooks
    effects = {
        d: [mean_nll(model, hooks, some, sources) for sources in compositions] for d, some in examples.items()
    }
    workshop.log.record(
        "reinforced",
        domain=task.domain,
        round=task.number,
        step=len(result.history) and int(result.history[-1]["step"]),
        timing={},
        method=task.stage.method,
        before=dict(result.before),
        after=dict(result.after),
        effects=effects,
    )
    return dataclasses.replace(result, effects=effects)
