"""The shipped recipes say what the paper and their data hold."""

from __future__ import annotations

from typing import Any

import pytest

from brainstacks.base_files import default_quantization
from training.data.formats import read
from training.data.records import Message
from training.recipe.recipe import RECIPES, SourceRecipe, load_recipe

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))

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


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "add"])
def test_every_shipped_recipe_loads_and_says_where_its_data_comes_from_and_on_what_terms(name: str) -> None:
    recipe = load_recipe(name)
    assert all(domain.licence and domain.description and domain.sources for domain in recipe.domains)
    assert recipe.null_space is None or recipe.null_space.samples <= recipe.data.selection


def test_the_recipe_of_a_domain_to_be_added_has_room_for_it_alone() -> None:
    recipe = load_recipe("add")
    assert [(d.name, d.sources) for d in recipe.domains] == [("new", ())]
    assert recipe.quantization == default_quantization(recipe.base), "it trains on the base as it is served"


@pytest.mark.parametrize("source", shipped_sources(), ids=lambda source: source.source)
def test_every_source_of_a_shipped_recipe_is_read_in_its_own_columns(source: SourceRecipe) -> None:
    row = row_of(source)
    assert source.format is not None
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
