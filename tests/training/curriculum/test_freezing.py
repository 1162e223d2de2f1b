"""What a stack's file holds of its domain's prompts, and what is told where it can hold nothing."""

from __future__ import annotations

from pathlib import Path

from brainstacks.base_model import BaseModel
from tests.training.curricula import recipe
from tests.training.examples import example
from training.curriculum.freezing import signed
from training.recipe.recipe import recipe_from


def test_a_signature_reads_as_much_of_a_prompt_as_the_recipe_s_router(
    tiny_base: BaseModel, tiny_directory: Path
) -> None:
    router = {"router": {"sequence_length": 32}}
    plan = recipe_from({"base": str(tiny_directory), "domains": [{"name": "chat"}], **router})
    found = signed(tiny_base, plan, "chat", [example([i, 98], [1], str(i)) for i in range(9)], print)
    assert found is not None
    assert found.config.sequence_length == 32


def test_why_there_is_none_is_told(tiny_base: BaseModel, tiny_directory: Path) -> None:
    told: list[str] = []
    few = [example([i, 98], [1], str(i)) for i in range(3)]
    assert signed(tiny_base, recipe(tiny_directory), "chat", few, told.append) is None
    (line,) = told
    assert line.startswith("chat: no signature")
    assert "3 different training prompts" in line
