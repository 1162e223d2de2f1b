"""A recipe is checked whole before a run starts; the shipped ones say what the paper and their data hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from brainstacks.errors import ConfigError
from training.data.formats import read
from training.data.records import Message
from training.recipe.recipe import RECIPES, Recipe, SourceRecipe, load_recipe, recipe_from

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))
MINIMAL: dict[str, Any] = {"base": "b", "domains": [{"name": "chat", "licence": "MIT"}]}

CHAT = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
ROWS: dict[str, dict[str, Any]] = {
    "hub:databricks/databricks-dolly-15k": {
        "instruction": "Q",
        "context": "",
        "response": "A",
        "category": "open_qa",
    },
    "hub:google-research-datasets/mbpp": {
        "task_id": 601,
        "text": "Q",
        "code": "A",
        "test_list": ["assert f() == 1"],
        "test_setup_code": "",
        "challenge_test_list": [],
    },
    "reasoning_gym:codeio": {"prompt": "Q", "response": "A"},
    "hub:openai/gsm8k": {"question": "Q", "answer": "48/2 = <<48/2=24>>24\n#### 24"},
    "hub:lavita/MedQuAD": {
        "document_id": "0000559",
        "question_type": "information",
        "question": "Q",
        "answer": "A",
    },
    "hub:ChilleD/StrategyQA": {
        "qid": "b8677742616fef051f00",
        "term": "T",
        "description": "D",
        "question": "Q",
        "answer": True,
        "facts": "A",
    },
    "hub:tatsu-lab/alpaca": {"instruction": "Q", "input": "", "output": "A", "text": "Below is..."},
    "hub:iamtarun/python_code_instructions_18k_alpaca": {
        "instruction": "Q",
        "input": "",
        "output": "A",
        "prompt": "Below is...",
    },
    "hub:medalpaca/medical_meadow_medical_flashcards": {"instruction": "Q", "input": "", "output": "A"},
    "hub:nvidia/Nemotron-Post-Training-Dataset-v2": {
        "uuid": "u",
        "license": "cc-by-4.0",
        "category": "chat",
        "reasoning": "off",
        "messages": CHAT,
    },
    "hub:HuggingFaceH4/ultrafeedback_binarized": {
        "prompt": "Q",
        "prompt_id": "p",
        "chosen": CHAT,
        "rejected": [CHAT[0], {"role": "assistant", "content": "Worse"}],
        "messages": CHAT,
    },
    "hub:nvidia/Daring-Anteater": {
        "system": "",
        "mask": "User",
        "dataset": "synthetic_conv",
        "conversations": [
            {"from": "User", "value": "Q", "label": None},
            {"from": "Assistant", "value": "A", "label": "helpfulness:4"},
        ],
    },
    "hub:nvidia/OpenCodeReasoning": {"id": "i", "input": "Q", "output": "<think>...", "solution": "A"},
    "hub:nvidia/OpenMathReasoning": {
        "problem": "Q",
        "expected_answer": "24",
        "inference_mode": "cot",
        "generated_solution": "A",
    },
    "hub:AI-MO/NuminaMath-CoT": {"source": "s", "problem": "Q", "solution": "A", "messages": CHAT},
    "hub:GBaker/MedQA-USMLE-4-options": {
        "question": "Q",
        "answer": "Yes",
        "options": {"A": "No", "B": "Yes"},
        "meta_info": "step1",
        "answer_idx": "B",
    },
    "hub:FreedomIntelligence/medical-o1-reasoning-SFT": {
        "Question": "Q",
        "Complex_CoT": "...",
        "Response": "A",
    },
    "hub:qiaojin/PubMedQA": {
        "pubid": 1,
        "question": "Q",
        "context": {"contexts": ["C"]},
        "long_answer": "A",
        "final_decision": "yes",
    },
    "hub:open-thoughts/OpenThoughts-114k": {
        "system": "Think.",
        "conversations": [{"from": "user", "value": "Q"}, {"from": "assistant", "value": "A"}],
    },
    "hub:open-thoughts/OpenThoughts-114k metadata": {
        "problem": "Q",
        "deepseek_reasoning": "...",
        "deepseek_solution": "A",
        "ground_truth_solution": None,
        "domain": "code",
        "source": "taco",
        "test_cases": "{}",
        "starter_code": None,
    },
    "hub:NovaSky-AI/Sky-T1_data_17k": {
        "system": "Think.",
        "conversations": [{"from": "user", "value": "Q"}, {"from": "assistant", "value": "A"}],
    },
}
"""A row of every source that a shipped recipe names, and of subsets with columns of their own.

It has the dataset's columns, and values that its `where` selects; most ask "Q" and answer "A".
"""

ANSWERS = {
    "hub:openai/gsm8k": ("Q", "48/2 = 24\nThe answer is 24."),
    "hub:GBaker/MedQA-USMLE-4-options": ("Q\nA. No\nB. Yes", "B. Yes"),
}


def shipped_sources() -> list[SourceRecipe]:
    recipes = [load_recipe(name) for name in SHIPPED]
    found = [source for recipe in recipes for domain in recipe.domains for source in domain.sources]
    return list({(s.source, s.subset, s.format, str(s.columns)): s for s in found}.values())


def row_of(source: SourceRecipe) -> dict[str, Any]:
    return ROWS.get(f"{source.source} {source.subset}") or ROWS[source.source]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_loads_and_says_where_its_data_comes_from_and_on_what_terms(name: str) -> None:
    recipe = load_recipe(name)
    assert all(domain.licence and domain.description and domain.sources for domain in recipe.domains)
    assert recipe.null_space is None or recipe.null_space.samples <= recipe.data.selection


@pytest.mark.parametrize("source", shipped_sources(), ids=lambda source: source.source)
def test_every_source_of_a_shipped_recipe_is_read_in_its_own_columns(source: SourceRecipe) -> None:
    row = row_of(source)
    assert source.where.items() <= row.items()
    (record,) = read(source.format, row, "row", source.columns)
    prompt, response = ANSWERS.get(source.source, ("Q", "A"))
    system = [Message("system", row["system"])] if row.get("system") and source.format == "sharegpt" else []
    assert record.messages == (*system, Message("user", prompt))
    assert record.response == response


@pytest.mark.parametrize(
    ("name", "domains", "rounds", "rate"),
    [
        ("tinyllama-1.1b", ["chat", "code", "math", "medical"], 9, 2e-4),
        ("gemma-3-12b-it", ["chat", "code", "math", "medical", "reasoning"], 10, 1e-4),
    ],
)
def test_the_paper_s_recipes_have_its_domains_rounds_and_hyper_parameters(
    name: str, domains: list[str], rounds: int, rate: float
) -> None:
    recipe = load_recipe(name)
    assert [domain.name for domain in recipe.domains] == domains
    assert sum(domain.max_rounds or recipe.max_rounds for domain in recipe.domains) == rounds
    stack, training, space = recipe.stack, recipe.round, recipe.null_space
    assert (stack.rank, stack.alpha, stack.experts, stack.top_k) == (16, 16.0, 4, 2)
    assert (training.learning_rate, training.betas, training.weight_decay) == (rate, (0.9, 0.95), 0.01)
    assert training.batch_size * training.accumulation == 16
    assert (training.clip, recipe.data.max_tokens, recipe.earlier_stacks) == (1.0, 512, "all")
    assert space is not None
    assert (space.side, space.directions, space.samples) == ("output", 64, 400)


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
        ({"domains": [{"name": "chat"}]}, "DomainRecipe needs 'licence'"),
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
