"""A stage, whatever its method: what takes minutes of it says how far it is."""

from __future__ import annotations

import re
from typing import Any, cast

import pytest

from brainstacks.base_model import BaseModel
from tests.training.reinforce.stages import dpo, grpo, preferences, record, stage_of
from tests.training.workshop import workshop_of
from training import progress
from training.recipe.reinforcement import StageRecipe
from training.reinforce.items import StageRecords
from training.reinforce.stages import TRAININGS


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is told as if it took long."""
    monkeypatch.setattr(cast(Any, progress.shown).__wrapped__, "__defaults__", (0, 0))


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(
    ("stage", "lines"),
    [
        (dpo(), ["encoding"] * 4 + ["measuring pairs"] * 3 + ["measuring losses"]),
        (grpo(), ["encoding"] * 2 + ["drawing answers", "rewarding answers", "measuring losses"]),
    ],
    ids=["dpo", "grpo"],
)
def test_what_comes_before_the_first_step_is_told_of(
    stage: StageRecipe, lines: list[str], tiny_base: BaseModel, capsys: pytest.CaptureFixture[str]
) -> None:
    records = preferences() if stage.method == "dpo" else StageRecords([record(0, "1")], [record(1, "1")])
    task = stage_of(tiny_base, stage, records)
    TRAININGS[stage.method](workshop_of(tiny_base), task).begin()
    ended = [re.match(r"([a-z ]+) (\d+)/\2 ", line) for line in capsys.readouterr().err.splitlines()]
    assert [line[1] for line in ended if line] == lines
