"""Penalties, bias and truncation equal slow, obvious code; a seed means one sequence of draws."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brainstacks.engine.request import SamplingParams
from brainstacks.engine.sampler import adjust, choose, new_generator

LOGITS = torch.tensor([1.2, -0.4, 2.0, 0.3, 1.9, -3.0, 0.0, 0.8])


def slow_adjust(
    logits: Sequence[float], params: SamplingParams, prompt: Sequence[int], output: Sequence[int]
) -> list[float]:
    """Token by token, as the OpenAI and Hugging Face definitions say it."""
    result = []
    for token, logit in enumerate(logits):
        if token in (*prompt, *output):
            logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
        logit -= params.frequency_penalty * list(output).count(token)
        logit -= params.presence_penalty if token in output else 0.0
        result.append(logit + params.logit_bias.get(token, 0.0))
    return result


def slow_distribution(logits: Sequence[float], params: SamplingParams) -> dict[int, float]:
    """Probability of each token that may be drawn."""
    exponentials = [math.exp(logit / params.temperature) for logit in logits]
    probabilities = [e / sum(exponentials) for e in exponentials]
    ranked = sorted(range(len(logits)), key=lambda token: -probabilities[token])
    if params.top_k:
        ranked = ranked[: params.top_k]
    ranked = [t for t in ranked if probabilities[t] >= params.min_p * max(probabilities)]
    mass = sum(probabilities[t] for t in ranked)
    kept: list[int] = []
    for token in ranked:
        if kept and sum(probabilities[t] for t in kept) / mass >= params.top_p:
            break
        kept.append(token)
    total = sum(probabilities[t] for t in kept)
    return {token: probabilities[token] / total for token in kept}


tokens = st.lists(st.integers(0, 7), max_size=6)
penalty = st.sampled_from([0.0, 0.7, -1.3])


@given(
    tokens,
    tokens,
    penalty,
    penalty,
    st.sampled_from([1.0, 1.5, 0.5]),
    st.dictionaries(st.integers(0, 7), penalty),
)
def test_penalties_and_bias_equal_the_definitions(
    prompt: list[int],
    output: list[int],
    presence: float,
    frequency: float,
    repetition: float,
    bias: dict[int, float],
) -> None:
    params = SamplingParams(
        presence_penalty=presence, frequency_penalty=frequency, repetition_penalty=repetition, logit_bias=bias
    )
    before = LOGITS.clone()
    found = adjust(LOGITS, params, prompt, output, ())
    torch.testing.assert_close(found, torch.tensor(slow_adjust(LOGITS.tolist(), params, prompt, output)))
    assert torch.equal(LOGITS, before), "the logits that logprobs are taken from stay as they are"


def test_nothing_to_adjust_copies_nothing() -> None:
    assert adjust(LOGITS, SamplingParams(), [1], [2], ()) is LOGITS


def test_forbidden_tokens_cannot_be_chosen_whatever_their_bias() -> None:
    params = SamplingParams(temperature=0.0, logit_bias={2: 100.0})
    assert choose(adjust(LOGITS, params, [], [], ()), params, new_generator(0)) == 2
    assert choose(adjust(LOGITS, params, [], [], (2, 4)), params, new_generator(0)) == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7},
        {"top_k": 3},
        {"top_k": 1},
        {"top_p": 0.6},
        {"top_p": 1e-9},
        {"min_p": 0.3},
        {"min_p": 1.0},
        {"top_k": 5, "top_p": 0.8, "min_p": 0.1, "temperature": 0.8},
    ],
)
def test_draws_follow_the_slow_distribution(options: dict[str, float]) -> None:
    params = SamplingParams(**options)  # type: ignore[arg-type]
    expected = slow_distribution(LOGITS.tolist(), params)
    generator, draws = new_generator(7), 3000
    found = Counter(choose(LOGITS, params, generator) for _ in range(draws))
    assert set(found) <= set(expected)
    for token, probability in expected.items():
        deviation = math.sqrt(draws * probability * (1 - probability))
        assert abs(found[token] - draws * probability) <= 5 * deviation + 1e-6, token


@given(
    st.integers(0, 10),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5]),
    st.integers(0, 50),
)
def test_a_draw_is_always_from_what_truncation_left(
    top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(seed))
    params = SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p)
    allowed = slow_distribution(logits.tolist(), params)
    generator = new_generator(seed)
    assert all(choose(logits, params, generator) in allowed for _ in range(10))


def test_temperature_zero_is_the_argmax_and_draws_nothing() -> None:
    generator = new_generator(3)
    before = generator.get_state()
    assert choose(LOGITS, SamplingParams(temperature=0.0, top_p=0.1), generator) == 2
    assert torch.equal(generator.get_state(), before)


def test_a_seed_gives_the_same_draws_and_no_seed_other_ones() -> None:
    def draw(seed: int | None) -> list[int]:
        generator = new_generator(seed)
        return [choose(LOGITS, SamplingParams(), generator) for _ in range(40)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)
    assert draw(None) != draw(None)
    assert draw(-1) == draw(-1), "OpenAI clients send negative seeds"
