"""Penalties, bias and forbidden tokens equal their definitions, token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from brainstacks.engine.request import SamplingParams
from brainstacks.engine.sampling.adjust import adjust
from tests.engine.sampled import END, GREEDY, LOGITS, completion, next_token, random_logits


def slow_adjust(
    logits: Sequence[float],
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
) -> list[float]:
    """Token by token, as the OpenAI and Hugging Face definitions say it."""
    held = () if len(output) >= params.min_tokens else (END, *params.stop_token_ids)
    if params.ignore_eos:
        held = tuple(token for token in held if token in params.stop_token_ids)
    result = []
    for token, logit in enumerate(logits):
        if token in (*prompt, *output):
            logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
        logit -= params.frequency_penalty * list(output).count(token)
        logit -= params.presence_penalty if token in output else 0.0
        logit += params.logit_bias.get(token, 0.0)
        allowed = not params.allowed_token_ids or token in params.allowed_token_ids
        spells = any(
            [*output, token][-len(word) :] == list(word)
            for word in params.bad_words
            if len(word) <= len(output) + 1
        )
        result.append(-math.inf if token in held or not allowed or spells else logit)
    return result


some_tokens = st.lists(st.integers(0, 7), max_size=6)
penalty = st.sampled_from([0.0, 0.7, -1.3])
adjustments = st.builds(
    SamplingParams,
    presence_penalty=penalty,
    frequency_penalty=penalty,
    repetition_penalty=st.sampled_from([1.0, 1.5, 0.5]),
    logit_bias=st.dictionaries(st.integers(0, 7), penalty),
    min_tokens=st.integers(0, 4),
    stop_token_ids=st.lists(st.integers(0, 7), max_size=2).map(tuple),
    ignore_eos=st.booleans(),
    allowed_token_ids=st.lists(st.integers(0, 7), max_size=3, unique=True).map(tuple),
    bad_words=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple), max_size=2).map(tuple),
)


@given(st.lists(st.tuples(adjustments, some_tokens, some_tokens), min_size=1, max_size=5))
def test_penalties_bias_and_what_may_not_be_chosen_equal_the_definitions(
    cases: list[tuple[SamplingParams, list[int], list[int]]],
) -> None:
    logits = LOGITS.repeat(len(cases), 1)
    found = adjust(logits, [completion(*case) for case in cases])
    expected = [slow_adjust(LOGITS.tolist(), *case) for case in cases]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert torch.equal(logits, LOGITS.repeat(len(cases), 1)), "logprobs are taken from them as they are"


def test_nothing_to_adjust_copies_nothing() -> None:
    logits = LOGITS[None]
    assert adjust(logits, [completion(SamplingParams(), [1], [2])]) is logits


def test_penalties_follow_the_output_from_step_to_step() -> None:
    params = SamplingParams(
        temperature=0.0, repetition_penalty=1.4, frequency_penalty=0.3, presence_penalty=0.2, max_tokens=30
    )
    grown = completion(params, prompt=[2, 2, 5])
    for step in range(30):
        logits = random_logits(1, 8, step)
        expected = slow_adjust(logits[0].tolist(), params, [2, 2, 5], grown.output_ids)
        torch.testing.assert_close(adjust(logits, [grown])[0], torch.tensor(expected))
        grown.output_ids.append(next_token(logits[0], grown))
    assert len(set(grown.output_ids)) > 3


def test_forbidden_tokens_cannot_be_chosen_whatever_their_bias() -> None:
    params = replace(GREEDY, logit_bias={END: 100.0}, min_tokens=1, stop_token_ids=(4,))
    assert next_token(LOGITS, completion(params)) == 0
    assert next_token(LOGITS, completion(params, output=[7])) == END


def test_an_extreme_penalty_still_leaves_a_token_to_draw() -> None:
    one = completion(SamplingParams(repetition_penalty=1e-45, max_tokens=1), prompt=[0, 3])
    assert next_token(LOGITS, one) in (0, 3)


def test_only_allowed_tokens_are_chosen_and_no_bad_word_is_spelled() -> None:
    spelled = [(4,), (6, 0)]
    params = SamplingParams(temperature=1.5, allowed_token_ids=(0, 4, 6), bad_words=tuple(spelled), seed=3)
    one = completion(params, seed=3)
    for _ in range(60):
        one.output_ids.append(next_token(LOGITS, one))
    assert set(one.output_ids) == {0, 6}
    assert (6, 0) not in set(zip(one.output_ids, one.output_ids[1:], strict=False))
    assert (0, 6) in set(zip(one.output_ids, one.output_ids[1:], strict=False))
