"""`rl:` of a recipe's domain: stages of preferences or rewards, after its rounds and before it is frozen.

Units are in the attributes' descriptions; paper, section 7.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from brainstacks.config import from_mapping
from brainstacks.errors import ConfigError
from training.recipe.fields import check_fields, shown
from training.recipe.settings import RoundConfig, check_least, check_positive, require

RewardName = Literal["exact_answer", "python_tests"]


@dataclass(frozen=True)
class StageRecipe:
    """What every stage has. What is not here is the recipe's `round`, but for dropout and gate noise, which a
    stage has not: what is reinforced is what is served.

    Attributes:
        method: which stage it is.
        data: a JSONL file, relative to where the command runs; None: the domain's own records.
        held_out: of a file, items set aside to choose the snapshot, at most a fifth of them (count); of the
            domain's records, the selection records are. Of a file no item is taken whose first question a
            domain holds out, for validation, selection or the router.
        steps: optimiser steps.
        batch_size: items of a step, times `round.accumulation`: pairs, of which so many are in a forward, or
            prompts, whose answers share forwards of at most so many times `data.max_tokens` tokens.
        learning_rate: peak; that of the gates keeps the ratio that it has in the domain's rounds.
        warmup_steps: steps of the warm-up.
        eval_every: steps between evaluations on what is held out.
        patience: evaluations without improvement before stopping.
        min_gain: by which the score (accuracy, reward: shares) must rise for the stage to be frozen; by
            default two of the 32 items held out.
        max_nll_rise: nats per token by which the domain's selection NLL may rise; the stage stops beyond it,
            and no such snapshot is kept.
    """

    method: str
    data: str | None = None
    held_out: int = 32
    steps: int = 60
    batch_size: int = 4
    learning_rate: float = 5e-5
    warmup_steps: int = 5
    eval_every: int = 10
    patience: int = 4
    min_gain: float = 0.05
    max_nll_rise: float = 0.05

    def __post_init__(self) -> None:
        check_fields(self)
        check_least(self, 1, "held_out", "steps", "batch_size", "eval_every", "patience")
        check_least(self, 0, "warmup_steps", "min_gain", "max_nll_rise")
        check_positive(self, "learning_rate")

    def round_of(self, shared: RoundConfig) -> RoundConfig:
        """The settings of the round that the stage is, where the domain's rounds have `shared`."""
        names = ("steps", "batch_size", "learning_rate", "warmup_steps", "eval_every", "patience")
        own = {name: getattr(self, name) for name in names}
        gates = shared.gate_learning_rate
        if gates is not None:
            gates *= self.learning_rate / shared.learning_rate
        return dataclasses.replace(shared, **own, gate_noise=False, dropout=0.0, gate_learning_rate=gates)


@dataclass(frozen=True)
class DpoRecipe(StageRecipe):
    """Direct preference optimisation (Rafailov et al., 2023), with the sigmoid loss.

    Attributes:
        data: rows in the format `preference`; None: the domain's records that have a rejected answer.
        beta: how far the policy is held to the reference; the larger, the closer.
    """

    method: Literal["dpo"] = "dpo"
    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "beta")


@dataclass(frozen=True)
class GrpoRecipe(StageRecipe):
    """Group-relative policy optimisation (Shao et al., 2024) with a reward that is verified.

    Attributes:
        data: rows with `prompt` and what the reward asks for: `answer`, or `tests`; None: those of the
            domain's records that hold it.
        reward: `exact_answer`: the number is the right one; `python_tests`: the code of the answer passes the
            tests, in the sandbox.
        group_size: answers to each prompt (count).
        temperature: that they are drawn at, and their log-probabilities are taken at.
        max_new_tokens: longest answer.
        updates: optimiser steps on the same answers.
        clip: epsilon: how far the ratio of a token's probabilities counts.
        beta: weight of the KL divergence from the reference; 0 leaves the term out.
    """

    method: Literal["grpo"] = "grpo"
    reward: RewardName = "exact_answer"
    group_size: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 200
    updates: int = 1
    clip: float = 0.2
    beta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 2, "group_size")
        check_least(self, 1, "max_new_tokens", "updates")
        check_least(self, 0, "beta")
        check_positive(self, "temperature")
        require(0 < self.clip < 1, f"clip is {self.clip}; it lies between 0 and 1")


METHODS: Mapping[str, type[StageRecipe]] = {"dpo": DpoRecipe, "grpo": GrpoRecipe}


def stages_of(document: Any, where: str) -> tuple[StageRecipe, ...]:
    """The stages that `rl:` describes: a mapping, or a list of them in order.

    Args:
        where: the domain, for errors.

    Raises:
        ConfigError: an unknown method; a field that it has not; a value out of its range; by name.
    """
    listed = document if isinstance(document, list | tuple) else [document]
    return tuple(_stage(stage, f"{where}, rl stage {i}") for i, stage in enumerate(listed, 1))


def _stage(document: Any, where: str) -> StageRecipe:
    if isinstance(document, StageRecipe):
        return document
    if not isinstance(document, Mapping):
        raise ConfigError(f"{where} is {shown(document)}; it is a mapping of names to values")
    method = document.get("method")
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(f"{where}: method is {shown(method)}; it is one of {', '.join(METHODS)}")
    try:
        return from_mapping(METHODS[method], document)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}") from error
