"""A completion ends where its parameters say, and its events carry everything once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from brainstacks.engine import output
from brainstacks.engine.completion import Completion
from brainstacks.engine.detokenizer import Detokenizer
from brainstacks.engine.request import FinishReason, GenerationRequest, SamplingParams, TokenLogprob
from brainstacks.engine.sampling.sampler import Sampled, Sampler
from brainstacks.errors import EngineFailure
from brainstacks.tokenizer import ChatTokenizer
from tests.tiny import END, VOCAB, byte_tokenizer

TOKENIZER = ChatTokenizer(byte_tokenizer(), (END,))
ENDS = (END,)


def completion(*, text: bool = True, **options: Any) -> Completion:
    params = SamplingParams(**{"max_tokens": 50, **options})
    request = GenerationRequest("r", (1, 2, 3), params)
    state = Sampler(TOKENIZER, ENDS).new_state(params, request.prompt_ids, 0)
    return Completion(request, 2, state, Detokenizer(TOKENIZER, params.stop) if text else None)


def take(one: Completion, sampled: Sampled) -> FinishReason | None:
    return output.spell(one, sampled, ENDS, output.accept(one, sampled, ENDS))


def feed(one: Completion, tokens: Sequence[int]) -> tuple[FinishReason | None, str]:
    """Accept `tokens` until one of them ends the completion; the reason, and all text of its events."""
    pieces = []
    for token in tokens:
        reason = take(one, Sampled(token, -0.5))
        if reason is not None:
            reason = output.finish(one, reason)
        pieces.append(output.text_event(one).text)
        if reason is not None:
            return reason, "".join(pieces)
    return None, "".join(pieces)


# --- where it ends -------------------------------------------------------------------------------


def test_it_goes_on_until_max_tokens() -> None:
    one = completion(max_tokens=3)
    assert feed(one, b"abcd") == ("length", "abc")
    assert (one.output_ids, one.finish_reason, one.stop_reason) == ([*b"abc"], "length", None)


def test_the_end_token_has_no_text_and_no_stop_reason() -> None:
    one = completion()
    assert feed(one, [*b"ab", END, *b"c"]) == ("stop", "ab")
    assert (one.output_ids, one.stop_reason) == ([*b"ab", END], None)


def test_ignore_eos_goes_on_past_it() -> None:
    assert feed(completion(ignore_eos=True, max_tokens=4), [*b"a", END, END, *b"b"]) == ("length", "ab")


@pytest.mark.parametrize("token", [ord("b"), END])
def test_a_stop_token_is_the_stop_reason_even_where_it_is_the_end_token(token: int) -> None:
    one = completion(stop_token_ids=(token,), ignore_eos=True)
    assert feed(one, [*b"a", token, *b"c"]) == ("stop", "a")
    assert one.stop_reason == token


def test_a_stop_string_is_the_stop_reason_and_never_shows() -> None:
    one = completion(stop=("END", "zzz"))
    assert feed(one, b"ab END cd") == ("stop", "ab ")
    assert one.stop_reason == "END"


def test_what_the_next_step_depends_on_is_known_before_the_text() -> None:
    one = completion(stop=("b",), max_tokens=3)
    assert output.accept(one, Sampled(ord("a"), -0.5), ENDS) is None
    assert output.spell(one, Sampled(ord("a"), -0.5), ENDS, None) is None
    assert output.accept(one, Sampled(ord("b"), -0.25), ENDS) is None
    assert (one.output_ids, one.cumulative_logprob) == ([*b"ab"], -0.75)
    assert output.spell(one, Sampled(ord("b"), -0.25), ENDS, None) == "stop", "only its text ends it"
    assert output.accept(completion(max_tokens=1), Sampled(ord("a"), -0.5), ENDS) == "length"
    assert output.accept(completion(), Sampled(END, -0.5), ENDS) == "stop"


def test_a_stop_string_does_not_count_before_min_tokens() -> None:
    one = completion(stop=("b",), min_tokens=3)
    assert feed(one, b"bbbbb") == ("stop", "bbb")
    assert len(one.output_ids) == 4


def test_the_last_token_may_end_with_stop_rather_than_length() -> None:
    assert feed(completion(stop=("c",), max_tokens=3), b"abc") == ("stop", "ab")


def test_what_was_held_back_comes_out_with_the_end() -> None:
    assert feed(completion(stop=("cdef",), max_tokens=4), b"abcd") == ("length", "abcd")
    assert feed(completion(max_tokens=2), [ord("a"), 0xC3]) == ("length", "a\ufffd")


def test_a_stop_string_that_only_the_end_makes_whole_turns_length_into_stop() -> None:
    one = completion(stop=("\ufffd",), max_tokens=2)
    assert feed(one, [ord("a"), 0xC3]) == ("stop", "a")
    assert one.stop_reason == "\ufffd"


def test_without_a_tokenizer_there_are_tokens_and_no_text() -> None:
    one = completion(text=False, stop=("a",), max_tokens=2)
    assert feed(one, b"ab") == ("length", "")
    assert one.output_ids == [*b"ab"]


def test_a_completion_of_no_tokens_ends_with_length() -> None:
    one = completion(max_tokens=0)
    assert output.finish(one, "length") == "length"
    event = output.text_event(one)
    assert (event.text, event.token_ids, event.finish_reason) == ("", (), "length")


# --- its events ----------------------------------------------------------------------------------


def test_events_carry_each_token_and_logprob_once_and_the_end_on_the_last() -> None:
    one = completion(logprobs=0, max_tokens=4)
    entries = [TokenLogprob(token, -0.25, chr(token), bytes([token])) for token in b"abcd"]

    def accept(entry: TokenLogprob) -> FinishReason | None:
        return take(one, Sampled(entry.token_id, entry.logprob, entry))

    assert [accept(entry) for entry in entries[:2]] == [None, None]
    first = output.text_event(one)
    assert (first.index, first.text, first.token_ids, first.finish_reason) == (2, "ab", tuple(b"ab"), None)
    assert first.logprobs == tuple(entries[:2])
    assert (first.completion_tokens, first.cumulative_logprob) == (2, -0.5)
    assert [accept(entry) for entry in entries[2:]] == [None, "length"]
    output.finish(one, "length")
    last = output.text_event(one)
    assert (last.text, last.token_ids, last.finish_reason) == ("cd", tuple(b"cd"), "length")
    assert last.logprobs == tuple(entries[2:])
    assert (last.completion_tokens, last.cumulative_logprob) == (4, -1.0)


# --- the prompt's log-probabilities --------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 9])
def test_chunks_of_a_prompt_give_one_entry_per_token_with_none_first(chunk: int) -> None:
    prompt = (5, 250, 3, 3, 99, 0, 7)
    logits = torch.randn(len(prompt), VOCAB, generator=torch.Generator().manual_seed(1))
    found: list[TokenLogprob | None] = []
    for start in range(0, len(prompt), chunk):
        found += output.prompt_logprobs(TOKENIZER, prompt, start, logits[start : start + chunk], 2)
    assert found[0] is None
    assert [entry.token_id for entry in found[1:] if entry is not None] == list(prompt[1:])
    for entry, row in zip(found[1:], logits.log_softmax(-1), strict=False):
        assert entry is not None
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-6)
        assert [t.token_id for t in entry.top] == row.topk(2).indices.tolist()


def test_a_prompt_whose_logits_are_not_finite_is_an_error() -> None:
    with pytest.raises(EngineFailure, match="not finite"):
        output.prompt_logprobs(None, (1, 2), 0, torch.full((2, VOCAB), torch.nan), 0)
