"""The documents say what the trainer has: every field with its default, every option, format and module."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import typer.main
from torch.distributed.run import get_args_parser

from training.__main__ import app
from training.data.formats import read
from training.recipe.recipe import DomainRecipe, FormatName, Recipe, SourceRecipe
from training.recipe.reinforcement import METHODS, StageRecipe
from training.recipe.settings import DataRecipe, NullSpaceConfig, RoundConfig, RouterRecipe, StackRecipe
from training.runs.launch import LAUNCH

ROOT = Path(__file__).parents[2]
TRAINING, README, ARCHITECTURE = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("docs/training.md", "README.md", "docs/architecture.md")
)

PARTS: dict[str, type[Any]] = {
    "": Recipe,
    "domains.": DomainRecipe,
    "domains.sources.": SourceRecipe,
    "data.": DataRecipe,
    "stack.": StackRecipe,
    "round.": RoundConfig,
    "null_space.": NullSpaceConfig,
    "router.": RouterRecipe,
}
"""What a field's name begins with in the table of recipes -> the class that has it."""


def shown(field: dataclasses.Field[Any]) -> str:
    """The default of `field` as the table has it."""
    given = field.default
    if field.default_factory is not dataclasses.MISSING:
        given = field.default_factory()
    if given is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(given):
        return "as below"
    return given if isinstance(given, str) and given else json.dumps(given)


def rows(table: str, text: str = TRAINING) -> dict[str, str]:
    """First cell -> second cell of the rows below the heading `table`, those whose first cell is code."""
    section = text.split(f"\n## {table}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]*?) \|", section, re.MULTILINE))


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(r"^\$ brainstacks-train (.+)$", text, re.MULTILINE)]


def test_every_field_of_a_recipe_is_documented_with_its_default_and_no_other() -> None:
    fields = {f"{prefix}{f.name}": shown(f) for prefix, cls in PARTS.items() for f in dataclasses.fields(cls)}
    assert rows("Recipes") == fields


def test_every_field_of_a_stage_is_documented_with_its_default_and_no_other() -> None:
    shared = {f.name: shown(f) for f in dataclasses.fields(StageRecipe)}
    own = {
        f"{method}: {f.name}": shown(f)
        for method, cls in METHODS.items()
        for f in dataclasses.fields(cls)
        if f.name not in shared
    }
    assert rows("Reinforcement") == {**shared, **own}


def test_every_format_has_an_example_that_can_be_read() -> None:
    examples = rows("Formats")
    assert set(examples) == set(get_args(FormatName))
    for name in get_args(FormatName):
        (record,) = read(name, json.loads(examples[name].strip("`")), "example", {})
        assert record.messages, name
        assert record.response, name


def test_every_command_and_option_is_documented() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group has them
    assert {arguments[0] for arguments in commands(TRAINING)} == set(known)
    for name, command in known.items():
        for options in ([*p.opts, *p.secondary_opts] for p in command.params if p.opts[0].startswith("--")):
            assert any(f"{option} " in TRAINING or f"{option}`" in TRAINING for option in options), (
                name,
                options,
            )


def test_every_line_that_starts_several_processes_is_read_as_meant_by_torchrun_and_by_the_trainer() -> None:
    """`--run`, without a `--` before, is ambiguous to torchrun."""
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group has them
    lines = re.findall(r"^\$ torchrun (.+)$", TRAINING, re.MULTILINE)
    assert {line.split(" training ")[1].split()[0] for line in lines} == {"curriculum", "router", "evaluate"}
    for line in lines:
        read = get_args_parser().parse_args(shlex.split(line))
        words = [word for word in (read.training_script, *read.training_script_args) if word != "--"]
        assert read.module
        assert words[0] == "training"
        assert known[words[1]].make_context(words[1], words[2:]).params["run"] == Path("runs/mine")
    assert LAUNCH.removesuffix("...") in TRAINING


def test_the_picture_of_the_code_has_every_module_of_the_trainer_and_none_that_is_gone() -> None:
    modules = {path.name for path in (ROOT / "training").glob("*.py") if path.name != "__init__.py"}
    named = set(re.findall(r"\b\w+\.py\b", ARCHITECTURE))
    assert modules <= named
    code = ("brainstacks", "server", "training", "tests", "benchmarks")
    there = {path.name for part in code for path in (ROOT / part).rglob("*.py")}
    assert named <= there
