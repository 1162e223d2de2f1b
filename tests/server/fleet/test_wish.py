from __future__ import annotations

import json
from typing import Any

import pytest

from server.fleet.wish import MOST_NAMED, Wish, asked


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def chat(*said: str, model: str = "tiny", **fields: Any) -> bytes:
    roles = ("user", "assistant")
    messages = [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(said)]
    system = {"role": "system", "content": "Be brief."}
    return body(model=model, messages=[system, *messages], **fields)


@pytest.mark.parametrize("wish", [Wish(), Wish("a", "b", ("chat", "math")), Wish(last="b")])
def test_a_wish_survives_its_header(wish: Wish) -> None:
    assert Wish.parse(wish.header().decode()) == wish


@pytest.mark.parametrize("header", ["", "my-session", "[]", '["a"]', '["a", "b", 3]', "{", "[" * 100_000])
def test_a_session_that_no_entrance_wrote_is_no_wish(header: str) -> None:
    assert Wish.parse(header) == Wish()


def test_what_cannot_be_a_domain_goes_no_further() -> None:
    names = ["math", "base", "ungated", "x" * 65, "a b", "../a", "é", ""]
    found = asked(chat("hi", routing={"weights": dict.fromkeys(names, 1)}))
    assert found is not None
    assert found.stacks == ("math",)
    many = asked(chat("hi", routing={"weights": {f"d{number}": 1 for number in range(9999)}}))
    assert many is not None
    assert len(many.stacks) == MOST_NAMED


def test_all_turns_of_a_conversation_have_one_name() -> None:
    first = asked(chat("What is a gnu?"))
    assert first is not None
    assert asked(chat("What is a gnu?", "A big antelope.", "Where does it live?")) == first
    assert asked(chat("What is a gnat?")) != first


def test_turns_of_completions_and_of_responses_share_their_beginning() -> None:
    start = "long ago " * 300
    assert asked(body(prompt=start)) == asked(body(prompt=start + "and then some"))
    assert asked(body(input="a", instructions="b")) != asked(body(input="a", instructions="c"))
    said = {"role": "user", "content": "hi"}
    assert asked(body(input=[said])) == asked(body(input=[said, {"role": "assistant", "content": "ho"}]))


def test_the_same_words_under_another_composition_are_another_conversation() -> None:
    assert asked(chat("hi")) != asked(chat("hi", model="tiny:math"))
    assert asked(chat("hi")) != asked(chat("hi", routing={"weights": {"math": 0.5}}))


def test_a_client_may_name_its_conversation() -> None:
    assert asked(chat("hi"), b"mine") == asked(chat("ho"), b"mine")
    assert asked(chat("hi", prompt_cache_key="k")) == asked(chat("ho", prompt_cache_key="k"))
    assert asked(chat("hi", prompt_cache_key="k")) != asked(chat("hi", prompt_cache_key="l"))


@pytest.mark.parametrize(
    ("sent", "stacks"),
    [
        (chat("hi", model="tiny:math"), ("math",)),
        (chat("hi", routing={"weights": {"math": 0.5, "code": 1, "chat": 0}}), ("code", "math")),
        (chat("hi"), ()),
        (body(prompt=[1, 2, 3], model="tiny"), ()),
        (body(prompt=["a", "b"], routing={"weights": [1]}, model=5), ()),
        (body(messages=[1, None], input={"a": 1}), ()),
    ],
)
def test_stacks_that_a_body_names_are_known_before_it_is_checked(
    sent: bytes, stacks: tuple[str, ...]
) -> None:
    found = asked(sent)
    assert found is not None
    assert found.stacks == stacks


@pytest.mark.parametrize("sent", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000])
def test_what_is_no_object_belongs_nowhere(sent: bytes) -> None:
    assert asked(sent) is None
