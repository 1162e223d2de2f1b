"""Text grows by whole characters, and a stop string never shows, whatever the pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstacks.engine.detokenizer import Detokenizer
from brainstacks.tokenizer import ChatTokenizer
from tests.tiny import END, END_OF_TEXT, byte_tokenizer

TOKENIZER = ChatTokenizer(byte_tokenizer(), (END,))


class ByteStrings:
    """A byte-level vocabulary in which token i is any bytes; `decode` notes the most tokens it was given."""

    longest_token = 1

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self.most = 0

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        self.most = max(self.most, len(ids))
        texts = [b"<s>" if i < 0 else self._pieces[i] for i in ids if i >= 0 or not skip_special_tokens]
        return b"".join(texts).decode(errors="replace")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        raise AssertionError("a detokenizer only decodes")

    template_variables: frozenset[str] = frozenset()

    def encode_chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> list[int]:
        raise AssertionError("a detokenizer only decodes")

    def render_chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        raise AssertionError("a detokenizer only decodes")

    def added_token(self, text: str) -> int | None:
        raise AssertionError("a detokenizer only decodes")

    def info(self) -> dict[str, Any]:
        raise AssertionError("a detokenizer only decodes")

    def token_text(self, token_id: int) -> str:
        raise AssertionError("a detokenizer only decodes")

    def token_bytes(self, token_id: int) -> bytes:
        raise AssertionError("a detokenizer only decodes")


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


# Ends, middles and beginnings of characters, alone and joined: what merges of byte pairs can come to.
PIECES = [
    b"\x80", b"\xe2", b"\x82\xac", b"\xac\xe2\x82", b"\xf0\x9f", b"\x99\x82", b"\x82\xf0\x9f\x99",
    b"\xc3", b"\xff", b"a", "é".encode(), "\ufffd".encode(), b"\xed\xa0", b"\xf4\x90",
]  # fmt: skip


@given(
    st.lists(
        st.lists(st.integers(-1, len(PIECES) - 1), min_size=1, max_size=3).flatmap(
            lambda run: st.integers(1, 30).map(lambda times: run * times)
        ),
        max_size=5,
    )
)
def test_runs_of_broken_characters_of_any_length_are_what_decoding_all_at_once_gives(
    runs: list[list[int]],
) -> None:
    ids = [token for run in runs for token in run]
    tokenizer = ByteStrings(PIECES)
    detokenizer = Detokenizer(tokenizer)
    pieces = []
    for token in ids:
        detokenizer.push(token)
        pieces.append(detokenizer.take())
    detokenizer.flush()
    pieces.append(detokenizer.take(final=True))
    assert tokenizer.most <= 40
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    "run", [[0], [1], [3], [6], [-1], [11], [1, -1], [4, 2]], ids=lambda run: "+".join(map(str, run))
)
def test_thousands_of_tokens_without_a_character_cost_the_same_each(run: list[int]) -> None:
    tokenizer = ByteStrings(PIECES)
    detokenizer = Detokenizer(tokenizer)
    ids = run * (4000 // len(run))
    for token in ids:
        detokenizer.push(token)
    assert tokenizer.most <= 40, "no decode looks further back than a few tokens"
    late = len(detokenizer.text)
    expected = tokenizer.decode(ids, skip_special_tokens=True)
    assert late >= len(expected) - 20, "the text does not wait for the end"
    detokenizer.flush()
    assert detokenizer.text == expected


def test_stray_continuation_bytes_become_text_while_they_come() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    shown = ""
    for count in range(1, 5001):
        detokenizer.push(0x80)
        shown += detokenizer.take()
        assert count - len(shown) <= 16
    detokenizer.flush()
    assert shown + detokenizer.take(final=True) == "\ufffd" * 5000


def test_a_character_after_a_long_broken_run_is_whole() -> None:
    pieces, _ = stream([0x80] * 100 + list("é🙂b".encode()), [])
    assert "".join(pieces) == "\ufffd" * 100 + "é🙂b"


def test_a_stop_string_in_a_broken_run_ends_the_text() -> None:
    pieces, stop = stream([*b"ab", *[0x80] * 100], ["\ufffd\ufffd"])
    assert ("".join(pieces), stop) == ("ab", "\ufffd\ufffd")


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


class Pieces(ByteStrings):
    """A vocabulary as SentencePiece has it: its decoder takes the space from what begins a text."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return super().decode(ids, skip_special_tokens=skip_special_tokens).removeprefix(" ")


@pytest.mark.parametrize("prompt", [[0], [-1, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1, 0]])
def test_the_first_token_keeps_the_space_that_parts_it_from_the_prompt(prompt: list[int]) -> None:
    detokenizer = Detokenizer(Pieces([b" Hello", b" the"]), (), prompt)
    pieces = []
    for token in (1, 1):
        detokenizer.push(token)
        pieces.append(detokenizer.take())
    assert pieces == [" the", " the"]


def test_where_a_text_begins_with_the_completion_it_begins_without_a_space() -> None:
    detokenizer = Detokenizer(Pieces([b" Hello", b" the"]), (), [-1])
    detokenizer.push(1)
    assert detokenizer.take() == "the"


def test_a_prompt_that_ends_inside_a_character_is_no_context() -> None:
    whole = "€".encode()
    detokenizer = Detokenizer(ByteStrings([whole[:2], whole[2:], b"a"]), (), [2, 0])
    detokenizer.push(1)
    detokenizer.push(2)
    detokenizer.flush()
    assert detokenizer.take(final=True) == "\ufffda"


def test_special_tokens_are_text_where_they_are_asked_for() -> None:
    tokenizer = Pieces([b"a", b"b"])
    for skip, text in ((True, "ab"), (False, "a<s>b")):
        one = Detokenizer(tokenizer, (), [-1, 0], skip_special_tokens=skip)
        for token in (0, -1, 1):
            one.push(token)
        one.flush()
        assert one.text == text
