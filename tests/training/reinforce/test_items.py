"""What stages learn from: read whole before a run begins, and never what the domain validates on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from brainstacks.base_model import BaseModel
from brainstacks.errors import ConfigError
from tests.training.examples import record
from training.data.domains import DomainData
from training.data.records import Message, Record
from training.recipe.recipe import Recipe, recipe_from
from training.reinforce import items
from training.reinforce.items import StageRecords, load_stages, pairs_of, questions_of, stages_identity
from training.reinforce.rewards import REWARDS, Reward


def recipe(**stage: Any) -> Recipe:
    return recipe_from({"base": "b", "domains": [{"name": "math", "rl": stage}]})


def domain(train: list[Record], selection: list[Record], validation: list[Record]) -> dict[str, DomainData]:
    return {"math": DomainData("math", train, selection, validation, (), {}, 0, ())}


def load(plan: Recipe, data: dict[str, DomainData]) -> StageRecords:
    (found,) = load_stages(plan, data, plan.domains)["math"]
    return found


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(records: list[Record]) -> set[str]:
    return {r.messages[-1].content for r in records}


def test_pairs_of_a_file_are_split_by_prompt_and_none_has_one_that_is_held_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"ask {i % 10}", "chosen": f"yes {i}", "rejected": "no"} for i in range(20)]
    path = write(tmp_path / "pairs.jsonl", *rows)
    data = domain([], [record("ask 4", "x")], [record("Ask 3", "x")])
    data["math"] = dataclasses.replace(data["math"], router=[record("ask 5", "x")])
    data["chat"] = domain([record("ask 7", "x")], [], [record("ask 6", "x")])["math"]
    found = load(recipe(method="dpo", data=str(path), held_out=4), data)
    assert asked(found.train) | asked(found.held_out) == {f"ask {i}" for i in (0, 1, 2, 7, 8, 9)}
    assert not asked(found.train) & asked(found.held_out)
    assert len(found.held_out) == 2
    assert len(found.train) == 10
    assert all(r.rejected == "no" for r in (*found.train, *found.held_out))
    ids = [r.id for r in (*found.train, *found.held_out)]
    assert len(set(ids[:10])) == 10
    identity = stages_identity({"math": [found]})
    assert identity["math"][0][0][0] == f"{tmp_path.name}/pairs.jsonl"
    data["math"] = dataclasses.replace(data["math"], validation=[record(f"ask {i}", "x") for i in range(10)])
    with pytest.raises(
        ConfigError, match="all 20 records of domain 'math, dpo 1' share their first question with"
    ):
        load(recipe(method="dpo", data=str(path)), data)


def test_a_gain_that_one_item_makes_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": f"ask {i}", "chosen": "yes", "rejected": "no"} for i in range(100)]
    path = write(tmp_path / "pairs.jsonl", *rows)
    for min_gain, warned in ((0.05, False), (0.04, True)):
        caplog.clear()
        load(recipe(method="dpo", data=str(path), held_out=20, min_gain=min_gain), domain([], [], []))
        assert ("one of the 20 items held out is 0.050" in caplog.text) == warned


@pytest.mark.parametrize(("reward", "column"), [("exact_answer", "answer"), ("python_tests", "tests")])
def test_what_a_reward_asks_for_has_a_column_of_its_own(
    reward: str, column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unchecked = {n: Reward(r.column, r.own, r.expected, r.score, r.given) for n, r in REWARDS.items()}
    monkeypatch.setattr(items, "REWARDS", unchecked)
    path = write(tmp_path / "asked.jsonl", *({"prompt": f"{i}?", column: str(i)} for i in range(10)))
    found = load(recipe(method="grpo", reward=reward, data=str(path), held_out=2), domain([], [], []))
    assert (len(found.train), len(found.held_out)) == (8, 2)
    assert {r.response for r in found.train} == {r.messages[0].content[:-1] for r in found.train}
    with pytest.raises(ConfigError, match=f"row 1: no '{column}'; it has prompt; give `data:`"):
        load(recipe(method="grpo", reward=reward, data=str(write(path, {"prompt": "a"}))), domain([], [], []))


def test_a_row_that_asks_for_no_number_is_refused_by_its_own(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "1 + 1?", "answer": 2},
        {"prompt": "and?", "answer": "who knows"},
    ]
    path = write(tmp_path / "asked.jsonl", *rows)
    with pytest.raises(ConfigError, match=r"asked\.jsonl, row 2: 'answer' is 'who knows'; it is a number"):
        load(recipe(method="grpo", data=str(path)), domain([], [], []))


def test_a_prompt_may_be_a_conversation_and_an_answer_a_number(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for i in range(10):
        contents = {"user": f"{i}, then?", "assistant": "what?"}
        turns = [{"role": role, "content": text} for role, text in contents.items()]
        rows.append({"prompt": [*turns, {"role": "user", "content": "add 1"}], "answer": i + 1})
    path = write(tmp_path / "asked.jsonl", *rows, {"prompt": "10 + 1?", "answer": 11})
    found = load(recipe(method="grpo", data=str(path)), domain([], [], []))
    records = [*found.train, *found.held_out]
    assert {r.response for r in records} == {str(n) for n in range(1, 12)}
    assert {len(r.messages) for r in records} == {1, 3}


def test_without_a_file_the_domains_own_records_serve_and_its_selection_records_choose() -> None:
    some = [record(f"{i}?", f"#### {i}", str(i)) for i in range(6)]
    data = domain([*some[:4], record("which?", "none")], some[4:], [])
    found = load(recipe(method="grpo"), data)
    assert [r.response for r in found.train] == ["0", "1", "2", "3"]
    assert [r.response for r in found.held_out] == ["4", "5"]
    assert found.sources == ()
    with pytest.raises(ConfigError, match=r"math, dpo 1: there is nothing to learn from; give `data:`"):
        load(recipe(method="dpo"), data)


def test_several_processes_are_refused_by_the_domain_that_has_a_stage() -> None:
    plan = recipe(method="dpo")
    with pytest.raises(ConfigError, match="2 processes train, and a stage of `rl:`, which math has"):
        load_stages(plan, {}, plan.domains, processes=2)
    plain = recipe_from({"base": "b", "domains": [{"name": "math"}]})
    assert load_stages(plain, {}, plain.domains, processes=2) == {}


def test_a_reward_that_cannot_be_told_here_is_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check() -> None:
        raise ConfigError("no namespaces")

    monkeypatch.setattr(
        items,
        "REWARDS",
        {"python_tests": Reward("tests", "", lambda r: "", lambda answer, tests: 0.0, check=check)},
    )
    with pytest.raises(ConfigError, match="no namespaces"):
        load(recipe(method="grpo", reward="python_tests", data="nowhere.jsonl"), domain([], [], []))


def test_pairs_and_questions_are_encoded_as_training_encodes_and_what_has_no_room_is_left_out(
    tiny_base: BaseModel,
) -> None:
    tokenizer = tiny_base.chat_tokenizer()
    records = [
        Record("a", (Message("user", "hi"),), "yes", "not this"),
        Record("b", (Message("user", "x" * 200),), "yes", "no"),
    ]
    (pair,) = pairs_of(records, tokenizer, 96)
    prompt, chosen = tokenizer.encode_answered([{"role": "user", "content": "hi"}], "yes")
    assert (pair.example.prompt, pair.example.response) == (tuple(prompt), tuple(chosen))
    assert pair.rejected.prompt == pair.example.prompt
    assert pair.rejected.id == pair.example.id == "a"
    assert bytes(i for i in pair.rejected.response if i < 256).startswith(b"not this")
    (question,) = questions_of(records, tokenizer, 96)
    assert (question.example.prompt, question.expected) == (tuple(prompt), "yes")
