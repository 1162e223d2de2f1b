"""Every public format becomes the same records; a row that does not fit is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import pytest

from brainstacks.errors import ConfigError
from training.data.formats import FORMATS, format_of, read
from training.data.records import Message, Record
from training.recipe.recipe import COLUMNS, FormatName


def only(format: FormatName, row: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> Record:
    (made,) = read(format, row, "r", columns or {})
    return made


def user(content: str) -> tuple[Message, ...]:
    return (Message("user", content),)


def test_every_format_of_a_recipe_can_be_read() -> None:
    assert set(FORMATS) == set(COLUMNS) == set(get_args(FormatName))


def test_prompt_and_response() -> None:
    made = only("prompt_response", {"prompt": "hi", "response": "yes", "source": "x"})
    assert made == Record("r", user("hi"), "yes")


def test_columns_are_found_under_the_names_that_the_recipe_gives() -> None:
    columns = {"prompt": "text", "response": "code"}
    assert only("prompt_response", {"text": "hi", "code": "yes"}, columns) == Record("r", user("hi"), "yes")


@pytest.mark.parametrize("extra", [{}, {"input": ""}, {"input": None}])
def test_alpaca_without_an_input_is_the_instruction_alone(extra: Mapping[str, Any]) -> None:
    assert only("alpaca", {"instruction": "Sum.", "output": "3", **extra}) == Record("r", user("Sum."), "3")


def test_alpaca_with_an_input_has_it_below_the_instruction() -> None:
    made = only("alpaca", {"instruction": "Sum.", "input": "1 2", "output": "3"})
    assert made == Record("r", user("Sum.\n\n1 2"), "3")


def test_alpaca_s_input_may_have_another_name_and_be_missing_from_a_row() -> None:
    columns = {"input": "context"}
    row = {"instruction": "Sum.", "output": "3", "input": "not this"}
    assert only("alpaca", {**row, "context": "1 2"}, columns) == Record("r", user("Sum.\n\n1 2"), "3")
    assert only("alpaca", row, columns) == Record("r", user("Sum."), "3")


def test_every_answer_of_a_conversation_is_a_record_with_what_precedes_it() -> None:
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [Message(*turn) for turn in turns]
    wanted = [Record("r/0", tuple(messages[:2]), "b"), Record("r/1", tuple(messages[:4]), "d")]
    assert read("messages", {"messages": [{"role": r, "content": c} for r, c in turns]}, "r", {}) == wanted
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    shared = [{"from": names[r], "value": c} for r, c in turns]
    assert read("sharegpt", {"conversations": shared}, "r", {}) == wanted
    assert read("sharegpt", {"conversation": shared}, "r", {}) == wanted


@pytest.mark.parametrize("name", ["system", "instructions"])
def test_sharegpt_s_system_column_opens_the_conversation(name: str) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    row, columns = {"conversations": turns, name: "Think."}, {"system": name}
    assert only("sharegpt", row, columns) == Record("r", (Message("system", "Think."), *user("a")), "b")
    for empty in ("", " ", None):
        assert only("sharegpt", {**row, name: empty}, columns) == Record("r", user("a"), "b")


def test_a_system_turn_stands_before_the_system_column() -> None:
    turns = [{"from": f, "value": v} for f, v in (("system", "Own."), ("human", "a"), ("gpt", "b"))]
    made = only("sharegpt", {"conversations": turns, "system": "Think."})
    assert made.messages == (Message("system", "Own."), *user("a"))


@pytest.mark.parametrize("role", ["tool", "function", "Tool", "function_call", "observation"])
def test_a_row_in_which_a_tool_takes_part_is_one_record_with_nothing_to_learn(role: str) -> None:
    turns = [("user", "a"), ("assistant", "calls"), (role, "3"), ("assistant", "b")]
    messages = [{"role": r, "content": c} for r, c in turns]
    assert read("messages", {"messages": messages}, "r", {}) == [Record("r", (), "")]
    assert read("messages", {"messages": messages[:3]}, "r", {}) == [Record("r", (), "")]
    shared = [{"from": r, "value": c} for r, c in turns]
    assert read("sharegpt", {"conversations": shared}, "r", {}) == [Record("r", (), "")]
    pair = {"chosen": messages, "rejected": [messages[0], messages[3]]}
    assert read("preference", pair, "r", {}) == [Record("r", (), "")]


def test_a_conversation_without_an_answer_is_one_record_with_nothing_to_learn() -> None:
    assert read("messages", {"messages": [{"role": "user", "content": "a"}]}, "r", {}) == [
        Record("r", (), "")
    ]


@pytest.mark.parametrize("names", [("user", "assistant"), ("User", "Assistant"), ("HUMAN", "GPT")])
def test_roles_are_read_whatever_their_name_and_case(names: tuple[str, str]) -> None:
    turns = [{"from": names[0], "value": "a"}, {"from": names[1], "value": "b"}]
    assert only("sharegpt", {"conversations": turns}) == Record("r", user("a"), "b")


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}])
def test_an_answer_that_is_marked_so_is_context_and_not_learnt(mark: Mapping[str, Any]) -> None:
    turns = [("user", "a"), ("assistant", "bad"), ("user", "b"), ("assistant", "good")]
    messages = [{"role": role, "content": text} for role, text in turns]
    messages[1] |= mark
    (learnt,) = read("messages", {"messages": messages}, "r", {})
    assert learnt.response == "good"
    assert [m.content for m in learnt.messages] == ["a", "bad", "b"]


def test_a_greeting_that_answers_nothing_has_no_prompt_and_precedes_nothing() -> None:
    turns = [("assistant", "hello"), ("user", "a"), ("assistant", "b")]
    made = read("messages", {"messages": [{"role": r, "content": c} for r, c in turns]}, "r", {})
    assert made == [Record("r/0", (), "hello"), Record("r/1", user("a"), "b")]


def test_gsm8k_loses_calculator_marks_and_ends_in_a_sentence() -> None:
    answer = "He has 48/2 = <<48/2=24>>24 left.\nIn all 48+24 = <<48+24=72>>72.\n#### 72"
    made = only("gsm8k", {"question": "How many?", "answer": answer})
    assert made.messages == user("How many?")
    assert made.response == "He has 48/2 = 24 left.\nIn all 48+24 = 72.\nThe answer is 72."


OPTIONS = ("Aspirin", "Rest", "Surgery")


@pytest.mark.parametrize(
    "options",
    [
        dict(zip("ABC", OPTIONS, strict=True)),
        list(OPTIONS),
        [{"key": key, "value": text} for key, text in zip("ABC", OPTIONS, strict=True)],
        {**dict(zip("ABC", OPTIONS, strict=True)), "D": None},
    ],
)
@pytest.mark.parametrize(
    "answer", [{"answer_idx": "B"}, {"answer_idx": 1}, {"answer": "Rest"}, {"answer": "B"}]
)
def test_medqa_has_its_options_in_the_prompt_and_answers_with_letter_and_text(
    options: Any, answer: Mapping[str, Any]
) -> None:
    made = only("medqa", {"question": "What now?", "options": options, **answer})
    assert made == Record("r", user("What now?\nA. Aspirin\nB. Rest\nC. Surgery"), "B. Rest")


def test_medqa_prefers_the_index_where_answer_is_given_too() -> None:
    row = {"question": "?", "options": ["B", "A"], "answer_idx": "B", "answer": "A"}
    assert only("medqa", row).response == "B. A"


def test_preferences_as_text_and_as_messages_are_the_same() -> None:
    wanted = Record("r", user("hi"), "yes", "no")

    def talk(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "hi"}, {"role": "assistant", "content": answer}]

    assert only("preference", {"prompt": "hi", "chosen": "yes", "rejected": "no"}) == wanted
    assert only("preference", {"prompt": "hi", "chosen": talk("yes"), "rejected": talk("no")}) == wanted
    answers = {"chosen": talk("yes")[1:], "rejected": talk("no")[1:]}
    assert only("preference", {"prompt": talk("")[:1], **answers}) == wanted


def test_the_answers_of_preferences_may_go_on_from_a_conversation_that_the_prompt_holds() -> None:
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    more = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]

    def answer(text: str) -> list[dict[str, str]]:
        return [*more, {"role": "assistant", "content": text}]

    made = only("preference", {"prompt": asked, "chosen": answer("yes"), "rejected": answer("no")})
    assert [m.content for m in made.messages] == ["s", "hi", "a", "b"]
    assert (made.response, made.rejected) == ("yes", "no"), "both are kept: the chosen one is trained on"


def test_prompts_and_completions_as_text_and_as_messages_are_the_same() -> None:
    wanted = Record("r", user("hi"), "yes")
    assert only("prompt_completion", {"prompt": "hi", "completion": "yes"}) == wanted
    asked, answered = [{"role": "user", "content": "hi"}], [{"role": "assistant", "content": "yes"}]
    assert only("prompt_completion", {"prompt": asked, "completion": answered}) == wanted
    turns = [("user", "a"), ("assistant", "not learnt"), ("user", "b")]
    asked = [{"role": role, "content": text} for role, text in turns]
    answered += [{"role": "user", "content": "c"}, {"role": "assistant", "content": "no"}]
    first, second = read("prompt_completion", {"prompt": asked, "completion": answered}, "r", {})
    assert [m.content for m in first.messages] == ["a", "not learnt", "b"]
    assert [first.response, second.response] == ["yes", "no"]
    assert [m.content for m in second.messages][-2:] == ["yes", "c"]


@pytest.mark.parametrize(
    ("columns", "format"),
    [
        ("prompt response id", "prompt_response"),
        ("prompt completion", "prompt_completion"),
        ("prompt response completion", "prompt_response"),
        ("messages source", "messages"),
        ("prompt messages", "prompt_response"),
        ("prompt chosen rejected score_chosen", "preference"),
        ("chosen rejected", "preference"),
        ("question answer", "prompt_response"),
    ],
)
def test_the_format_of_a_file_is_told_by_its_columns(columns: str, format: str) -> None:
    assert format_of(columns.split()) == format


def test_template_tokens_are_stripped_from_every_text() -> None:
    row = {"prompt": "[INST] hi [/INST]", "chosen": "yes</s>", "rejected": "no<|im_end|>"}
    assert only("preference", row) == Record("r", user(" hi "), "yes", "no")


def test_an_empty_text_is_read_as_it_is() -> None:
    assert only("prompt_response", {"prompt": "hi", "response": None}) == Record("r", user("hi"), "")
    assert only("prompt_response", {"prompt": " ", "response": "a"}) == Record("r", (), "a")


@pytest.mark.parametrize(
    ("format", "row", "message"),
    [
        ("alpaca", {"instruction": "a", "text": "b"}, "no 'output'; it has instruction, text"),
        ("prompt_response", {"prompt": 3, "response": "a"}, "'prompt' is a int"),
        ("messages", {"messages": "hi"}, "conversation is a str"),
        ("messages", {"messages": ["hi"]}, "turn is a str"),
        ("messages", {"messages": [{"role": "Author", "content": "a"}]}, "role is 'Author'"),
        ("messages", {"messages": [{"role": None, "content": "a"}]}, "role is None"),
        ("sharegpt", {"conversations": [{"role": "user"}]}, "a turn has role and no 'from'; .* take the"),
        ("sharegpt", {"conversations": [], "system": 3}, "'system' is a int"),
        ("alpaca", {"instruction": "a", "input": 3, "output": "b"}, "'input' is a int"),
        ("gsm8k", {"question": "a", "answer": "72"}, "####"),
        ("medqa", {"question": "a", "options": ["x", "y"], "answer": "z"}, r"'z'\} names no option.*A, B"),
        ("medqa", {"question": "a", "options": "xy", "answer": "x"}, "'options' is a str"),
        ("medqa", {"question": "a", "options": ["x"], "answer": "x"}, "1 options"),
        ("preference", {"chosen": "a", "rejected": "b"}, "no 'prompt'"),
        ("preference", {"chosen": [{"role": "user", "content": "a"}], "rejected": "b"}, "end with"),
    ],
)
def test_a_row_that_does_not_fit_is_named(format: FormatName, row: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"row 'r' is not in format {format}: .*{message}"):
        read(format, row, "r", {})


def test_preferences_about_different_conversations_are_refused() -> None:
    def talk(question: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": "yes"}]

    with pytest.raises(ConfigError, match="different conversations"):
        read("preference", {"chosen": talk("a"), "rejected": talk("b")}, "r", {})


def test_a_column_that_the_row_has_not_is_named() -> None:
    with pytest.raises(ConfigError, match="no 'text'; it has prompt"):
        read("prompt_response", {"prompt": "hi"}, "r", {"response": "text"})
