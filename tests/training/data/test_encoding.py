"""Records become examples whose loss is on the response alone."""

from __future__ import annotations

from brainstacks.tokenizer import ChatTokenizer
from tests.tiny import END, byte_tokenizer
from tests.training.examples import record
from training.data.encoding import LEAST_RESPONSE, encode
from training.data.records import Message, Record

TOKENIZER = ChatTokenizer(byte_tokenizer(), (END,))


def test_examples_have_the_prompt_format_of_serving_and_end_with_the_end_of_turn() -> None:
    (made,) = encode([record("hi", "yes", "a")], TOKENIZER, 100)
    assert made.id == "a"
    assert list(made.prompt) == TOKENIZER.encode_chat([{"role": "user", "content": "hi"}])
    assert list(made.response) == [*b"yes", END]


def test_every_message_of_a_conversation_is_in_the_prompt() -> None:
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    (made,) = encode([Record("a", tuple(Message(*turn) for turn in turns), "d")], TOKENIZER, 200)
    assert list(made.prompt) == TOKENIZER.encode_chat([{"role": r, "content": c} for r, c in turns])
    assert list(made.response) == [*b"d", END]


def test_a_long_response_is_cut_and_a_prompt_without_room_is_left_out() -> None:
    room = len(TOKENIZER.encode_chat([{"role": "user", "content": "hi"}]))
    made = encode([record("hi", "x" * 50, "a"), record("h" * 50, "x", "b")], TOKENIZER, room + LEAST_RESPONSE)
    assert [(e.id, len(e.response)) for e in made] == [("a", LEAST_RESPONSE)]
    assert encode([record("hi", "x" * 50)], TOKENIZER, room + LEAST_RESPONSE - 1) == []


def test_a_conversation_that_the_chat_template_refuses_is_left_out() -> None:
    inner = byte_tokenizer()
    refusing = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('no system') }}{% endif %}"
    inner.chat_template = refusing + inner.chat_template
    tokenizer = ChatTokenizer(inner, (END,))
    system = Record("a", (Message("system", "s"), Message("user", "hi")), "yes")
    assert [e.id for e in encode([system, record("hi", "yes", "b")], tokenizer, 100)] == ["b"]
