"""From a recipe's sources to the records of every domain."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brainstacks.errors import ConfigError
from tests.tiny import write_records
from training.data.domains import DomainData, prepare
from training.data.records import prompt_key
from training.data.sources import SourceRecords, load_source
from training.recipe.recipe import Recipe, SourceRecipe, recipe_from


def recipe(*domains: dict[str, Any], **data: Any) -> Recipe:
    named = [{"licence": "CC0", **domain} for domain in domains]
    settings = {"selection": 2, "validation": 3, **data}
    return recipe_from({"base": "tiny", "data": settings, "domains": named})


CHAT, MATH = {"name": "chat"}, {"name": "math"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """`chat` has validation records, one of them with a training prompt; `math` shares a prompt with it."""
    chat = [(f"chat question {i}", f"answer {i}") for i in range(12)]
    math = [(f"math question {i}", f"{i}") for i in range(12)]
    write_records(tmp_path / "chat" / "train.jsonl", chat)
    write_records(tmp_path / "chat" / "validation.jsonl", [("CHAT question 4", "again"), ("new", "n")])
    write_records(tmp_path / "math" / "train.jsonl", [*math, chat[7]])
    return tmp_path


def prompts(data: DomainData) -> dict[str, set[str]]:
    parts = {
        "train": data.train,
        "selection": data.selection,
        "router": data.router,
        "validation": data.validation,
    }
    return {name: {prompt_key(r) for r in records} for name, records in parts.items()}


def test_a_directory_stands_in_for_the_sources_of_the_domains_that_it_has(directory: Path) -> None:
    law = write_records(directory / "law.jsonl", [(f"law question {i}", "a") for i in range(9)])
    own = {"name": "law", "sources": [{"source": f"jsonl:{law}"}]}
    prepared = prepare(recipe(CHAT, own), directory)
    assert [prepared[name].sources[0].name.split("/")[-1] for name in ("chat", "law")] == [
        "train.jsonl",
        "law.jsonl",
    ]


def test_a_directory_that_has_no_domain_of_the_recipe_is_refused(directory: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"/nowhere' has a directory for none of the domains \(chat, math\)"
    ):
        prepare(recipe(CHAT, MATH), directory / "nowhere")
    with pytest.raises(ConfigError, match=r"'law' has no sources; .* that holds law/train.jsonl"):
        prepare(recipe(CHAT, {"name": "law"}), directory)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "completion": "yes"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]},
        {"prompt": [{"role": "user", "content": "hi"}], "chosen": [{"role": "assistant", "content": "yes"}],
         "rejected": [{"role": "assistant", "content": "no"}]},
    ],
)  # fmt: skip
def test_a_directory_s_files_may_have_the_formats_that_trl_takes(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "chat").mkdir()
    other = {"prompt": "other", "response": "answer"}
    (tmp_path / "chat" / "train.jsonl").write_text(
        json.dumps(row) + "\n" + json.dumps(row).replace("hi", "ho")
    )
    (tmp_path / "chat" / "validation.jsonl").write_text(json.dumps(other))
    made = prepare(recipe(CHAT), tmp_path)["chat"]
    assert {r.response for r in (*made.train, *made.selection)} == {"yes"}
    assert [r.response for r in made.validation] == ["answer"]


def test_a_directory_stands_in_for_the_sources(directory: Path) -> None:
    prepared = prepare(recipe(CHAT, {**MATH, "sources": [{"source": "hub:never/asked"}]}), directory)
    assert list(prepared) == ["chat", "math"]
    chat, math = prepared.values()
    assert [len(part) for part in (chat.train, chat.selection, chat.validation)] == [9, 2, 2]
    assert [len(part) for part in (math.train, math.selection, math.validation)] == [9, 2, 2]
    assert [s.name for s in chat.sources] == ["chat/train.jsonl", "chat/validation.jsonl"]
    assert [s.examples for s in chat.sources] == [12, 2]
    assert [s.name for s in math.sources] == ["math/train.jsonl"]


def test_no_prompt_is_in_two_splits(directory: Path) -> None:
    for data in prepare(recipe(CHAT, MATH, router=2), directory).values():
        parts = prompts(data).values()
        assert len(data.router) == 2
        assert sum(map(len, parts)) == len(set.union(*parts))


def test_what_is_left_out_is_counted(directory: Path) -> None:
    chat, math = prepare(recipe(CHAT, MATH, contamination="drop"), directory).values()
    nothing = {"unusable": 0, "share": 0, "repeated": 0}
    assert chat.left_out == {**nothing, "contaminated": 0, "in validation": 1}
    assert math.left_out == {**nothing, "contaminated": 1, "in validation": 0}
    assert chat.overlaps == ()
    assert [(o.first, o.second, o.exact, o.near) for o in math.overlaps] == [("chat", "math", 1, 0)]


def test_shared_prompts_go_where_the_recipe_says(directory: Path) -> None:
    def owners(action: str, *order: dict[str, Any]) -> list[str]:
        prepared = prepare(recipe(*order, contamination=action), directory)
        return [
            n for n, data in prepared.items() if any("chat question 7" in p for p in prompts(data).values())
        ]

    assert owners("report", CHAT, MATH) == ["chat", "math"]
    assert owners("drop", CHAT, MATH) == ["chat"]
    assert owners("drop", MATH, CHAT) == ["math"]
    prepared = prepare(recipe(MATH, CHAT, contamination="reassign"), directory)
    assert [prepared[name].received for name in ("math", "chat")] == [1, 0]
    assert prepared["chat"].left_out["contaminated"] == 1


def test_preparing_again_gives_the_same(directory: Path) -> None:
    assert prepare(recipe(CHAT, MATH), directory) == prepare(recipe(CHAT, MATH), directory)
    other = prepare(recipe(CHAT, MATH, seed=1), directory)
    assert other["math"].validation != prepare(recipe(CHAT, MATH), directory)["math"].validation


def sources(tmp_path: Path, *, weights: tuple[float, float] = (1.0, 1.0)) -> dict[str, Any]:
    many = write_records(tmp_path / "many.jsonl", [(f"many {i}", f"{i}") for i in range(30)])
    few = write_records(tmp_path / "few.jsonl", [(f"few {i}", f"{i}") for i in range(10)])
    listed = [{"source": f"jsonl:{p}", "weight": w} for p, w in zip((many, few), weights, strict=True)]
    return {"name": "chat", "sources": listed}


def test_sources_are_mixed_by_weight(tmp_path: Path) -> None:
    (chat,) = prepare(recipe(sources(tmp_path, weights=(2.0, 1.0)))).values()
    used = [r.messages[0].content for r in (*chat.train, *chat.selection, *chat.validation)]
    assert sum("many" in prompt for prompt in used) == 20
    assert sum("few" in prompt for prompt in used) == 10
    assert chat.left_out["share"] == 10
    assert [s.examples for s in chat.sources] == [30, 10]


def test_repeated_records_are_left_out_and_repeated_ids_completed(tmp_path: Path) -> None:
    rows = [{"id": "x", "prompt": f"p{i % 8}", "response": "r"} for i in range(10)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (chat,) = prepare(recipe({"name": "chat", "sources": [{"source": f"jsonl:{path}"}]})).values()
    ids = {r.id for r in (*chat.train, *chat.selection, *chat.validation)}
    assert len(ids) == 8
    assert all(id.startswith("x-") for id in ids)
    assert chat.left_out["repeated"] == 2


def test_what_gives_nothing_to_learn_is_counted(tmp_path: Path) -> None:
    answers = [f"{i}" for i in range(8)] + [""] * 3
    path = write_records(tmp_path / "a.jsonl", [(f"p{i}", answer) for i, answer in enumerate(answers)])
    (chat,) = prepare(recipe({"name": "chat", "sources": [{"source": f"jsonl:{path}"}]})).values()
    assert chat.left_out["unusable"] == 3


def test_validation_of_some_sources_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_validation(source: SourceRecipe) -> SourceRecords:
        found = load_source(source)
        return replace(found, validation=found.records[:1]) if "many" in source.source else found

    monkeypatch.setattr("training.data.domains.load_source", with_validation)
    with pytest.raises(ConfigError, match="of the 2 sources of domain 'chat' 1 have a validation split"):
        prepare(recipe(sources(tmp_path)))


def test_a_domain_without_sources_or_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="domain 'chat' has no sources"):
        prepare(recipe(CHAT))


def test_a_missing_file_is_named(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"medical/train\.jsonl"):
        prepare(recipe(CHAT, {"name": "medical"}), directory)
