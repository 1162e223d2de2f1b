"""Training rows have, id for id, the tokens of the text that serving joins, whatever the tokenizer's kind."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstacks.tokenizer import ChatTokenizer
from tests.tokenizer_kinds import KINDS, Kind
from training.data.encoding import Example, encode
from training.data.records import Message, Record

TEXTS = st.text(alphabet="ab \né", min_size=1, max_size=8).filter(str.strip)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Conversations of one to three questions, perhaps with a system's message."""
    system = [Message("system", draw(TEXTS))] if draw(st.booleans()) else []
    turns = [
        message
        for _ in range(draw(st.integers(0, 2)))
        for message in (Message("user", draw(TEXTS)), Message("assistant", draw(TEXTS)))
    ]
    return Record("r", (*system, *turns, Message("user", draw(TEXTS))), draw(TEXTS))


@cache
def made(name: str) -> tuple[Kind, Any, ChatTokenizer]:
    kind = KINDS[name]
    inner = kind.make()
    return kind, inner, ChatTokenizer(inner, (inner.eos_token_id,))


def joined(name: str, record: Record) -> tuple[str, list[int]]:
    """The text that serving joins, and its ids, by transformers alone."""
    kind, inner, _ = made(name)
    if inner.chat_template is None:
        (message,) = record.messages
        text = message.content + record.response + kind.after
        return text, inner(text, add_special_tokens=True).input_ids
    messages = [asdict(message) for message in record.messages]
    prompt = inner.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    text = prompt + record.response + kind.after
    return text, inner(text, add_special_tokens=False).input_ids


def served(name: str, record: Record) -> list[int]:
    """The ids of the prompt that a request with it has."""
    _, inner, tokenizer = made(name)
    if inner.chat_template is None:
        return tokenizer.encode(record.messages[0].content)
    return tokenizer.encode_chat([asdict(message) for message in record.messages])


def row(name: str, record: Record) -> Example:
    (found,) = encode([record], made(name)[2], 10_000)
    return found


@pytest.mark.parametrize("name", KINDS)
@given(record=records())
def test_a_row_has_the_ids_of_the_text_that_serving_joins(name: str, record: Record) -> None:
    kind, inner, tokenizer = made(name)
    if inner.chat_template is None:
        record = Record("r", (Message("user", record.messages[-1].content),), record.response)
    found, (text, whole) = row(name, record), joined(name, record)
    ids = [*found.prompt, *found.response]
    assert list(found.prompt) == served(name, record)
    assert tokenizer.decode(ids) == tokenizer.decode(whole), text
    assert not found.cut
    if kind.apart or whole[: len(found.prompt)] == list(found.prompt):
        assert ids == whole, text


@pytest.mark.parametrize(
    ("name", "answer", "pieces"),
    [
        ("SentencePiece-like, Zephyr", "ab", ["ab", "</s>"]),
        ("SentencePiece-like, Llama 2", "ab", ["ab", "▁", "</s>"]),
        ("Metaspace, Zephyr", " ab", ["▁ab", "</s>"]),
        ("tiktoken-like, ChatML", " ab", ["Ġab", "<|im_end|>"]),
    ],
)
def test_an_answer_has_the_pieces_that_it_has_inside_the_template(
    name: str, answer: str, pieces: list[str]
) -> None:
    found = row(name, Record("r", (Message("user", "ab"),), answer))
    assert made(name)[1].convert_ids_to_tokens(list(found.response)) == pieces


@pytest.mark.parametrize(
    ("name", "prompt", "answer", "pieces"),
    [
        ("merging bytes, ChatML", "a", "\nb", ["Ċ", "b", "<|im_end|>"]),
        ("merging bytes, no template", "a", "ba", ["b", "a", "<|im_end|>"]),
        ("SentencePiece-like, no template", "a", "ba", ["b", "a", "</s>"]),
    ],
)
def test_no_token_of_a_row_reaches_over_the_prompts_end(
    name: str, prompt: str, answer: str, pieces: list[str]
) -> None:
    """`a` and `b` make one token in a text, and two where a completion begins between them."""
    record = Record("r", (Message("user", prompt),), answer)
    found = row(name, record)
    assert made(name)[1].convert_ids_to_tokens(list(found.response)) == pieces
    assert list(found.prompt) == served(name, record)


@pytest.mark.parametrize("name", [name for name in KINDS if "no template" not in name])
def test_special_text_in_an_answer_stays_text(name: str) -> None:
    kind, _, tokenizer = made(name)
    special = kind.after.strip()
    found = row(name, Record("r", (Message("user", "ab"),), f"a{special}b"))
    end = tokenizer.eos_token_ids[0]
    assert found.response.index(end) == len(found.response) - 1
    whole, prompt = tokenizer.decode([*found.prompt, *found.response]), tokenizer.decode(found.prompt)
    assert whole.removeprefix(prompt).removesuffix(kind.after.lstrip()).strip() == f"a{special}b"


def test_a_base_without_a_template_leaves_conversations_out() -> None:
    asked = Record("one", (Message("user", "a"),), "b")
    more = Record("more", (*asked.messages, Message("assistant", "b"), Message("user", "a")), "b")
    assert [e.id for e in encode([asked, more], made("merging bytes, no template")[2], 100)] == ["one"]
