"""Records come from files and generators, in one order, with digests of what was read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import DataSource
from tests.tiny import write_records
from training.data.records import Message, Record
from training.data.sources import load_directory, load_source
from training.recipe.recipe import SourceRecipe


def write_rows(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(prompt: str, response: str | None) -> dict[str, Any]:
    return {"prompt": prompt, "response": response}


# --- files ---------------------------------------------------------------------------------------


def test_a_directory_gives_its_two_files_and_their_digests(tmp_path: Path) -> None:
    train = write_records(tmp_path / "chat" / "train.jsonl", [("p", "r"), ("q", "s")])
    held_out = write_records(tmp_path / "chat" / "validation.jsonl", [("v", "w")])
    loaded = load_directory(tmp_path / "chat")
    assert loaded.records == [
        Record("train-0", (Message("user", "p"),), "r"),
        Record("train-1", (Message("user", "q"),), "s"),
    ]
    assert loaded.validation == [Record("validation-0", (Message("user", "v"),), "w")]
    assert loaded.sources == (
        DataSource("chat/train.jsonl", hashlib.sha256(train.read_bytes()).hexdigest(), 2),
        DataSource("chat/validation.jsonl", hashlib.sha256(held_out.read_bytes()).hexdigest(), 1),
    )


def test_a_directory_without_validation_has_none(tmp_path: Path) -> None:
    write_records(tmp_path / "train.jsonl", [("p", "r")])
    assert load_directory(tmp_path).validation is None


def test_a_file_is_read_in_its_format_up_to_the_limit(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", *({"id": i, "q": f"q{i}", "a": f"{i}"} for i in range(5)))
    columns = {"prompt": "q", "response": "a"}
    loaded = load_source(SourceRecipe(f"jsonl:{path}", columns=columns, limit=2))
    assert [(r.id, r.response) for r in loaded.records] == [("0", "0"), ("1", "1")]
    assert loaded.sources[0].examples == 2


def test_only_rows_with_the_values_asked_for_are_taken_and_count_for_the_limit(tmp_path: Path) -> None:
    rows = [{**row(f"p{i}", f"{i}"), "topic": "ab"[i % 2], "level": i // 4} for i in range(12)]
    source = f"jsonl:{write_rows(tmp_path / 'a.jsonl', *rows)}"

    def answers(**changes: Any) -> list[str]:
        return [r.response for r in load_source(SourceRecipe(source, **changes)).records]

    assert answers(where={"topic": "b"}) == ["1", "3", "5", "7", "9", "11"]
    assert answers(where={"topic": "b"}, limit=2) == ["1", "3"]
    assert answers(where={"topic": "b", "level": 1}) == ["5", "7"]
    with pytest.raises(ConfigError, match=r"a\.jsonl has no record .* among the rows where {'topic': 'c'}"):
        answers(where={"topic": "c"})
    with pytest.raises(ConfigError, match=r"no column 'kind' .*; it has prompt, response, topic, level"):
        answers(where={"kind": "b"})


def test_a_row_keeps_its_number_in_the_file_whatever_was_left_out(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", {**row("p", "r"), "topic": "a"}, {"prompt": "q", "topic": "b"})
    with pytest.raises(ConfigError, match=r"a\.jsonl, row 2: "):
        load_source(SourceRecipe(f"jsonl:{path}", where={"topic": "b"}))


def test_a_row_without_an_id_is_named_by_its_content(tmp_path: Path) -> None:
    rows = [row("p", "r"), row("q", "s")]
    one = load_source(SourceRecipe(f"jsonl:{write_rows(tmp_path / 'a.jsonl', *rows)}")).records
    two = load_source(SourceRecipe(f"jsonl:{write_rows(tmp_path / 'a.jsonl', *rows[::-1])}")).records
    assert one == two[::-1]
    assert one[0].id != one[1].id
    assert one[0].id.startswith("a-")


def test_records_that_ask_or_answer_nothing_are_counted_and_left_out(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", row("p", " \n"), row("", "r"), row("q", "s"), row("q", None))
    row_of_template = {"prompt": "<|im_end|>", "response": "r"}
    with path.open("a") as file:
        file.write(json.dumps(row_of_template) + "\n")
    loaded = load_source(SourceRecipe(f"jsonl:{path}"))
    assert [record.response for record in loaded.records] == ["s"]
    assert loaded.skipped == 4


def test_rows_in_which_a_tool_takes_part_are_counted_and_left_out(tmp_path: Path) -> None:
    turns = [("user", "a"), ("assistant", "calls"), ("tool", "3"), ("assistant", "b")]
    messages = [{"role": role, "content": content} for role, content in turns]
    rows = [{"messages": messages}, {"messages": messages[:2]}, {"messages": messages[:1]}]
    path = write_rows(tmp_path / "a.jsonl", *rows)
    loaded = load_source(SourceRecipe(f"jsonl:{path}", format="messages"))
    assert [record.response for record in loaded.records] == ["calls"]
    assert loaded.skipped == 2


def test_an_optional_column_is_missing_from_some_rows_and_misspelt_if_from_all(tmp_path: Path) -> None:
    rows = [{"instruction": f"{i}", "output": "r"} for i in range(2)]
    path = write_rows(tmp_path / "a.jsonl", *rows, {**rows[0], "context": "c"})

    def prompts(column: str) -> list[str]:
        source = SourceRecipe(f"jsonl:{path}", format="alpaca", columns={"input": column})
        return [record.messages[0].content for record in load_source(source).records]

    assert prompts("context") == ["0", "1", "0\n\nc"]
    with pytest.raises(ConfigError, match=r"no column 'contxt', .*; it has instruction, output, context"):
        prompts("contxt")


@pytest.mark.parametrize("line", ["{", "[]", "3", "null", '{"prompt": "p"}', "\x00", "[" * 100_000])
def test_a_line_that_is_no_record_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", row("p", "r"))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ConfigError, match=r"a\.jsonl, row 2: "):
        load_source(SourceRecipe(f"jsonl:{path}"))


def test_empty_lines_are_no_rows_and_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + json.dumps(row("p", "r")) + "\n \n{\n")
    with pytest.raises(ConfigError, match=r"a\.jsonl, row 4: "):
        load_source(SourceRecipe(f"jsonl:{path}"))
    path.write_text("\n" + json.dumps(row("p", "r")) + "\n \n")
    assert len(load_source(SourceRecipe(f"jsonl:{path}")).records) == 1


def test_an_array_is_told_how_to_become_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([row("p", "r")], indent=1))
    with pytest.raises(ConfigError, match="is a JSON array; write one object a line"):
        load_source(SourceRecipe(f"jsonl:{path}"))


def test_half_of_a_character_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt": "ok \\ud83d\\ude00", "response": "r"}\n{"prompt": "p", "response": "\\ud83d"}\n'
    )
    with pytest.raises(ConfigError, match=r"a\.jsonl, row 2: no JSON object; .*surrogates"):
        load_source(SourceRecipe(f"jsonl:{path}"))


def test_bytes_that_are_no_text_are_named_by_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "\xff", "response": "r"}\n')
    with pytest.raises(ConfigError, match=r"a\.jsonl, row 1: no JSON object"):
        load_source(SourceRecipe(f"jsonl:{path}"))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no mark", "byte order mark"])
@pytest.mark.parametrize("rows", [{"prompt": "p", "completion": "r"}, {"messages": []}], ids=lambda r: min(r))
def test_without_a_format_the_first_row_says_it(tmp_path: Path, mark: bytes, rows: Any) -> None:
    path = tmp_path / "a.jsonl"
    said = {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]}
    path.write_bytes(mark + json.dumps(rows).encode() + b"\n" + json.dumps({**rows, **said}).encode())
    (record, *_) = load_source(SourceRecipe(f"jsonl:{path}", format=None)).records
    assert (record.messages[0].content, record.response) == ("p", "r")


@pytest.mark.parametrize(
    "content", [b'{"prompt": "\xe9"}', b"{" + b"[" * 100_000, b"3"], ids=["latin", "deep", "number"]
)
def test_without_a_format_what_is_no_row_is_named_too(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.jsonl, row 1: "):
        load_source(SourceRecipe(f"jsonl:{path}", format=None))


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data file"):
        load_directory(tmp_path)
    path = write_rows(tmp_path / "a.jsonl", row("p", ""))
    with pytest.raises(ConfigError, match=r"a\.jsonl has no record"):
        load_source(SourceRecipe(f"jsonl:{path}"))


# --- generators ----------------------------------------------------------------------------------


def sums(**options: Any) -> SourceRecipe:
    return SourceRecipe("reasoning_gym:chain_sum", options=options)


def test_a_generator_gives_the_same_questions_for_the_same_options() -> None:
    one, two = load_source(sums(size=6, seed=3)), load_source(sums(size=6, seed=3))
    assert one == two
    assert len(one.records) == 6
    assert all(r.messages[0].content and r.response.lstrip("-").isdigit() for r in one.records)
    assert one.sources[0].digest != load_source(sums(size=6, seed=4)).sources[0].digest
    assert load_source(sums(size=6)) == load_source(sums(size=6, seed=0))


def test_a_generator_s_items_are_selected_by_its_own_columns() -> None:
    every = load_source(sums(size=6, seed=3)).records
    options = {"size": 6, "seed": 3}
    chosen = SourceRecipe("reasoning_gym:chain_sum", where={"answer": every[2].response}, options=options)
    assert load_source(chosen).records == [every[2]]
    with pytest.raises(ConfigError, match=r"no column 'response' .*; it has question, answer, metadata"):
        load_source(SourceRecipe("reasoning_gym:chain_sum", where={"response": "3"}, options=options))


@pytest.mark.parametrize("options", [{"size": 2, "colour": "red"}, {"size": 2, "min_terms": -1}])
def test_options_that_a_generator_refuses_are_named(options: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigError, match="reasoning_gym:chain_sum with options"):
        load_source(sums(**options))


def test_an_unknown_generator_is_named() -> None:
    with pytest.raises(ConfigError, match="reasoning_gym:nonsense"):
        load_source(SourceRecipe("reasoning_gym:nonsense", options={"size": 2}))
