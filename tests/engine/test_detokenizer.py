"""Text grows by whole characters, and a stop string never shows, whatever the pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstacks.engine.detokenizer import Detokenizer
from brainstacks.tokenizer import ChatTokenizer
from tests.tiny import END, END_OF_TEXT, byte_tokenizer

TOKENIZER = ChatTokenizer(byte_tokenizer(), (END,))


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """`text`, growing by one character at a time, up to the moment at which a stop string is whole."""
    for end in range(1, len(text) + 1):
        whole = [stop for stop in stops if text[:end].endswith(stop)]
        if whole:
            stop = max(whole, key=len)
            return text[: end - len(stop)], stop
    return text, None


def stream(ids: list[int], stops: list[str]) -> tuple[list[str], str | None]:
    """The pieces that a client sees, the last one after the end."""
    detokenizer = Detokenizer(TOKENIZER, stops)
    pieces: list[str] = []
    for token in ids:
        stop = detokenizer.push(token)
        if stop is not None:
            return [*pieces, detokenizer.take(final=True)], stop
        pieces.append(detokenizer.take())
    stop = detokenizer.flush()
    return [*pieces, detokenizer.take(final=True)], stop


@given(st.text("aab é漢🙂", max_size=30), st.lists(st.text("aab é漢", min_size=1, max_size=4), max_size=3))
def test_a_stream_is_the_text_up_to_the_first_stop_string_in_whole_characters(
    text: str, stops: list[str]
) -> None:
    pieces, stop = stream(TOKENIZER.encode(text), stops)
    assert ("".join(pieces), stop) == cut(text, stops)
    assert all("\ufffd" not in piece for piece in pieces)


@given(st.text(max_size=20))
def test_any_text_survives_byte_by_byte(text: str) -> None:
    text = text.encode(errors="ignore").decode()
    pieces, _ = stream(TOKENIZER.encode(text), [])
    assert "".join(pieces) == text


@given(st.lists(st.integers(0, 255), max_size=12))
def test_bytes_that_are_no_text_become_replacement_characters_and_lose_nothing_else(
    values: list[int],
) -> None:
    pieces, _ = stream(values, [])
    assert "".join(pieces) == bytes(values).decode(errors="replace")


def test_a_tail_that_could_begin_a_stop_string_is_held_until_it_cannot() -> None:
    detokenizer = Detokenizer(TOKENIZER, ["END"])
    pieces = []
    for token in TOKENIZER.encode("xENyEND"):
        stop = detokenizer.push(token)
        if stop is None:
            pieces.append(detokenizer.take())
    assert pieces == ["x", "", "", "ENy", "", ""]
    assert stop == "END"
    assert detokenizer.take(final=True) == ""


def test_a_held_tail_comes_out_when_the_completion_ends_without_the_stop_string() -> None:
    assert stream(TOKENIZER.encode("abEN"), ["END"]) == (["a", "b", "", "", "EN"], None)


def test_half_a_character_waits_for_the_rest() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    seen = []
    for byte in "é🙂".encode():
        detokenizer.push(byte)
        seen.append(detokenizer.take())
    assert seen == ["", "é", "", "", "", "🙂"]


def test_a_broken_character_shows_only_at_the_end() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    detokenizer.push(0xC3)
    assert detokenizer.take() == ""
    assert detokenizer.flush() is None
    assert detokenizer.take(final=True) == "\ufffd"


def test_special_tokens_have_no_text() -> None:
    pieces, _ = stream([*b"a", END_OF_TEXT, *b"b", END, END, *b"c"], [])
    assert "".join(pieces) == "abc"


def test_before_min_tokens_a_stop_string_is_text() -> None:
    detokenizer = Detokenizer(TOKENIZER, ["ab"])
    for token in b"ab":
        assert detokenizer.push(token, check_stop=False) is None
    assert detokenizer.push(ord("c")) is None
    assert detokenizer.push(ord("a")) is None
    assert detokenizer.push(ord("b")) == "ab"
    assert detokenizer.take(final=True) == "abc"


@pytest.mark.parametrize(
    ("stops", "left"), [(["bc", "abcd"], "a"), (["d", "bcd"], "a"), (["abcd", "zz"], "")]
)
def test_of_several_stop_strings_the_one_that_is_whole_first_wins_and_the_longer_of_two(
    stops: list[str], left: str
) -> None:
    pieces, _ = stream(list(b"abcd"), stops)
    assert "".join(pieces) == left
