"""A recipe is checked whole before a run starts: unknown and missing keys are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brainstacks.errors import ConfigError
from training.recipe import RECIPES, Recipe, load_recipe, recipe_from

MINIMAL: dict[str, Any] = {"base": "b", "domains": [{"name": "chat", "licence": "MIT"}]}


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_shipped_recipe_is_sound(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.domains
    assert all(d.licence for d in recipe.domains)
    assert recipe.selection >= 1


def test_a_recipe_is_its_defaults_and_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("base: b\nstack: {rank: 3}\ndomains:\n  - {name: chat, licence: MIT}\n")
    recipe = load_recipe(str(path))
    assert recipe == recipe_from({**MINIMAL, "stack": {"rank": 3}})
    assert (recipe.stack.rank, recipe.stack.experts, recipe.earlier_stacks) == (3, 4, "all")
    assert recipe.domain("chat").licence == "MIT"
    with pytest.raises(ConfigError, match="no domain 'code'; it has chat"):
        recipe.domain("code")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bse": "x"}, "Recipe has no field 'bse'"),
        ({"stack": {"rnak": 2}}, "StackRecipe has no field 'rnak'"),
        ({"round": {"step": 2}}, "RoundConfig has no field 'step'"),
        ({"router": {"epoch": 2}}, "RouterRecipe has no field 'epoch'"),
        ({"domains": [{"name": "chat"}]}, "DomainRecipe needs 'licence'"),
        ({"domains": [{"name": "a", "licence": "MIT", "path": "x"}]}, "DomainRecipe has no field 'path'"),
        ({"domains": []}, "no domains"),
        ({"earlier_stacks": "some"}, "'some'; it is all or none"),
    ],
)
def test_a_key_that_is_unknown_missing_or_impossible_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        recipe_from({**MINIMAL, **change})


def test_a_recipe_without_a_base_is_refused() -> None:
    with pytest.raises(ConfigError, match="Recipe needs 'base'"):
        recipe_from({"domains": MINIMAL["domains"]})


@pytest.mark.parametrize(
    ("content", "named"), [("- a\n", "no mapping"), ("a: [", "no valid YAML"), ("", "no mapping")]
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=named):
        load_recipe(str(path))


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'dmeo'.*demo"):
        load_recipe("dmeo")


def test_recipes_are_frozen() -> None:
    assert isinstance(recipe_from(MINIMAL), Recipe)
    with pytest.raises(AttributeError):
        recipe_from(MINIMAL).max_tokens = 3  # type: ignore[misc]
