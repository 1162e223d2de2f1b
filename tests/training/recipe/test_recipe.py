"""A recipe is checked whole before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from brainstacks.errors import ConfigError
from training.recipe.recipe import Recipe, SourceRecipe, load_recipe, recipe_from

MINIMAL: dict[str, Any] = {"base": "b", "domains": [{"name": "chat", "licence": "MIT"}]}


def test_a_recipe_is_its_defaults_and_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("base: b\nstack: {rank: 3}\ndomains:\n  - {name: chat, licence: MIT}\n")
    recipe = load_recipe(str(path))
    assert recipe == recipe_from({**MINIMAL, "stack": {"rank": 3}})
    assert (recipe.stack.rank, recipe.stack.experts, recipe.earlier_stacks) == (3, 4, "all")
    assert recipe.domain("chat").licence == "MIT"
    with pytest.raises(ConfigError, match="no domain 'code'; it has chat"):
        recipe.domain("code")


def test_a_domain_has_its_own_steps_and_every_round_a_seed_of_its_own() -> None:
    domains = [{"name": "a", "licence": "MIT", "steps": 7}, {"name": "b", "licence": "MIT"}]
    recipe = recipe_from({**MINIMAL, "domains": domains, "round": {"steps": 5}})
    rounds = [recipe.round_of(domain, number) for domain in recipe.domains for number in (0, 1)]
    assert [config.steps for config in rounds] == [7, 7, 5, 5]
    assert len({config.seed for config in rounds}) == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bse": "x"}, "Recipe has no field 'bse'"),
        ({"data": {"max_token": 2}}, "DataRecipe has no field 'max_token'"),
        ({"stack": {"rnak": 2}}, "StackRecipe has no field 'rnak'"),
        ({"round": {"step": 2}}, "RoundConfig has no field 'step'"),
        ({"null_space": {"k": 2}}, "NullSpaceConfig has no field 'k'"),
        ({"router": {"epoch": 2}}, "RouterRecipe has no field 'epoch'"),
        ({"domains": [{"licence": "MIT"}]}, "DomainRecipe needs 'name'"),
        ({"domains": [{"name": "a", "licence": "MIT", "path": "x"}]}, "DomainRecipe has no field 'path'"),
        ({"domains": []}, "no domains"),
        ({"domains": MINIMAL["domains"] * 2}, "two domains named chat"),
        ({"domains": "chat"}, "domains is 'chat'; it is a list"),
        ({"stack": 3}, "stack is 3; it is a mapping"),
        ({"earlier_stacks": "some"}, "'some'; it is one of all, none, sampled"),
        ({"quantization": "nf3"}, "'nf3'; it is one of nf4, int8, none, native"),
        ({"compute": "float16"}, "'float16'; it is one of auto, float32, bfloat16"),
        ({"max_rounds": 0}, "max_rounds is 0; it is at least 1"),
        ({"data": {"contamination": "hide"}}, "contamination is 'hide'"),
        ({"data": {"max_tokens": 8}}, "max_tokens is 8; it is at least 16"),
        ({"data": {"router": -1}}, "router is -1; it is at least 0"),
        ({"stack": {"projections": ["q"]}}, r"projections is \['q'\]; it is some of \['q_proj', "),
        ({"stack": {"projections": ["v_proj", "q_proj"]}}, "in that order"),
        ({"round": {"dropout": 1.0}}, "dropout is 1.0; it is at least 0 and less than 1"),
        ({"round": {"gate_learning_rate": 0}}, "gate_learning_rate is 0; it is positive"),
        ({"round": {"optimizer": "sgd"}}, "optimizer is 'sgd'"),
        ({"round": {"learning_rate": 0}}, "learning_rate is 0; it is positive"),
        ({"null_space": {"side": "both"}}, "side is 'both'"),
        ({"router": {"soft_levels": []}}, "soft_levels is"),
        ({"router": {"floors": {"chta": 0.2}}}, "router.floors names 'chta'; the recipe's domains are chat"),
        ({"round": None}, "round is None; it is a mapping"),
        ({1: "x", "a": "y"}, "Recipe has no field 1, 'a'"),
    ],
)
def test_a_key_that_is_unknown_missing_or_impossible_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        recipe_from({**MINIMAL, **change})


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("round: {learning_rate: 2e-4}", "round: learning_rate is '2e-4'; .*: write 2.0e-4$"),
        ("router: {learning_rate: 1e-3}", "router: learning_rate is '1e-3'; .*: write 1.0e-3$"),
        ("round: {learning_rate: .inf}", "round: learning_rate is inf; it is a finite number"),
        ("round: {clip: x}", "round: clip is 'x'; it is a finite number"),
        ("round: {betas: 0.9}", "round: betas is 0.9; it is a list"),
        ("round: {steps: 2.5}", "round: steps is 2.5; it is a whole number"),
        ("round: {gate_noise: 'no'}", "round: gate_noise is 'no'; it is true or false"),
        ("data: {packing: 'false'}", "data: packing is 'false'; it is true or false"),
        ("stack: {rank: 2.5}", "stack: rank is 2.5; it is a whole number"),
        ("router: {floors: [1]}", r"router: floors is \[1\]; it is a mapping of names to values"),
        ("domains: [{name: chat, licence: MIT, steps: '5'}]", "domain 1: steps is '5'; it is a whole number"),
        (
            "domains: [{name: a, licence: MIT, sources: [{source: 'hub:x'}, {source: 'hub:y', limit: 1e3}]}]",
            "domain 1, source 2: limit is '1e3'; it is a whole number",
        ),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_place_in_the_file(
    tmp_path: Path, written: str, named: str
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | yaml.safe_load(written)))
    with pytest.raises(ConfigError, match=f"^{named}"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ({"source": "web:x"}, "it is hub:<dataset>, jsonl:<file> or reasoning_gym:<generator>"),
        ({"source": "hub:"}, "source is 'hub:'"),
        ({"source": "hub:x", "format": "csv"}, "format is 'csv'"),
        ({"source": "hub:x", "limit": 0}, "limit is 0; it is at least 1"),
        ({"source": "hub:x", "weight": 0}, "weight is 0; it is at least 1e-06"),
        ({"source": "hub:x", "where": "open_qa"}, "where is 'open_qa'; it is a mapping"),
        ({"source": "jsonl:x", "split": "train"}, "split is for hub: sources, not jsonl:"),
        ({"source": "jsonl:x", "revision": "v1"}, "revision is for hub: sources, not jsonl:"),
        ({"source": "hub:x", "options": {"size": 3}}, "options is for reasoning_gym:, not hub:"),
    ],
)
def test_a_source_that_could_not_be_read_is_refused(source: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        recipe_from({**MINIMAL, "domains": [{"name": "chat", "licence": "MIT", "sources": [source]}]})


def test_a_column_that_the_format_does_not_read_is_refused_with_those_that_it_does() -> None:
    with pytest.raises(ConfigError, match="columns names inputs; the format alpaca reads instruction, "):
        SourceRecipe("jsonl:a", format="alpaca", columns={"inputs": "context"})
    with pytest.raises(ConfigError, match="columns are of a format; give the format too"):
        SourceRecipe("jsonl:a", format=None, columns={"input": "context"})


def test_a_recipe_that_its_aliases_make_huge_is_refused_in_a_short_message(tmp_path: Path) -> None:
    lines = ["x0: &x0 [a, a, a, a, a, a, a, a, a]"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 6)]
    path = tmp_path / "r.yaml"
    path.write_text("\n".join([*lines, "round: {steps: *x5}"]))
    with pytest.raises(ConfigError) as refused:
        load_recipe(str(path))
    assert len(refused.value.message) < 1000


def test_a_recipe_without_a_base_is_refused() -> None:
    with pytest.raises(ConfigError, match="Recipe needs 'base'"):
        recipe_from({"domains": MINIMAL["domains"]})


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"- a\n", "it is a mapping"),
        (b"", "it is a mapping"),
        *(
            (bad, "no valid YAML")
            for bad in (b"a: [", b"? [a]\n: b", b"a: Caf\xe9", b"a: 2020-13-45", b"[" * 3000)
        ),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=named):
        load_recipe(str(path))


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("base: b\nround: {steps: 1000}\ndomains: []\nround: {batch_size: 2}\n")
    with pytest.raises(ConfigError, match=r"(?s)'round' is given twice; give it once.*line 1"):
        load_recipe(str(path))


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'dmeo'.*demo, gemma-3-12b-it, tinyllama-1.1b"):
        load_recipe("dmeo")
    with pytest.raises(ConfigError, match=r"no recipe 'aaa.*File name too long"):
        load_recipe("a" * 5000)


def test_recipes_are_frozen() -> None:
    assert isinstance(recipe_from(MINIMAL), Recipe)
    with pytest.raises(AttributeError):
        recipe_from(MINIMAL).base = "other"  # type: ignore[misc]


def test_a_recipe_trains_on_the_base_as_a_server_holds_it() -> None:
    document = {"base": "packaged:smollm2-135m-instruct", "domains": [{"name": "law", "licence": "MIT"}]}
    assert recipe_from(document).quantization == "native"
    assert recipe_from({**document, "base": "organisation/model"}).quantization == "nf4"
    assert recipe_from({**document, "quantization": "int8"}).quantization == "int8"
