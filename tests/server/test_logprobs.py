from __future__ import annotations

import pytest

from brainstacks.engine.request import TokenLogprob
from server.logprobs import LOWEST, TextOffsets, chat_logprobs, completion_logprobs
from tests.server.byte_tokenizer import ByteTokenizer


def token(byte: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    data = bytes([byte])
    return TokenLogprob(byte, logprob, data.decode(errors="replace"), data, top)


def test_offsets_count_characters_also_across_tokens_that_split_one() -> None:
    offsets = TextOffsets()
    pieces = [b"a", "😀".encode()[:1], "😀".encode()[1:3], "😀".encode()[3:] + b"b", b"c"]
    starts = [offsets.next(piece) for piece in pieces]
    text = b"".join(pieces).decode()
    assert starts == [0, 1, 1, 1, 3]
    assert text[3] == "c"


def test_of_two_alternatives_with_one_text_the_likelier_stays() -> None:
    halves = (token(0xC3, -1.0), token(0xC4, -2.0))  # both show as U+FFFD
    chosen = token(65, -3.0, halves)
    shown = completion_logprobs([chosen], [65], ByteTokenizer(), TextOffsets())
    assert shown["top_logprobs"] == [{"\ufffd": -1.0, "A": -3.0}]


def test_minus_infinity_becomes_the_lowest_finite_value() -> None:
    chosen = token(65, float("-inf"), (token(66, float("-inf")),))
    assert chat_logprobs([chosen])["content"][0]["top_logprobs"][0]["logprob"] == LOWEST
    assert completion_logprobs([chosen], [65], ByteTokenizer(), TextOffsets())["token_logprobs"] == [LOWEST]


def test_arrays_of_different_lengths_are_a_bug_that_shows() -> None:
    with pytest.raises(ValueError, match="1 log-probabilities for 2 tokens"):
        completion_logprobs([token(65, -1.0)], [65, 66], ByteTokenizer(), TextOffsets())
