"""The batched sampler equals slow, obvious code for one row, and no row sees its neighbours."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from brainstacks.engine.request import SamplingParams
from brainstacks.engine.sampling.sampler import Sampled
from brainstacks.errors import EngineFailure
from tests.engine.sampled import (
    GREEDY,
    LOGITS,
    SAMPLER,
    completion,
    draw,
    next_token,
    random_logits,
    sample,
    tokens,
)
from tests.fake_tensors import DEVICE, fake_cuda, watched


def slow_distribution(logits: Sequence[float], params: SamplingParams) -> dict[int, float]:
    """Probability of each token that may be drawn, in the order of the draw."""
    highest = max(logits)
    exponentials = [math.exp((logit - highest) / params.temperature) for logit in logits]
    total = math.fsum(exponentials)
    probabilities = [e / total for e in exponentials]
    ranked = list(range(len(logits)))
    if params.top_k or params.top_p < 1.0:
        ranked.sort(key=lambda token: (-logits[token], token))
    if params.top_k:
        ranked = ranked[: params.top_k]
    least = params.min_p * max(probabilities)
    ranked = [t for t in ranked if probabilities[t] >= least]
    mass = math.fsum(probabilities[t] for t in ranked)
    kept: list[int] = []
    before = 0.0
    for token in ranked:
        if kept and params.top_p < 1.0 and before >= params.top_p * mass:
            break
        kept.append(token)
        before += probabilities[token]
    total = math.fsum(probabilities[t] for t in kept)
    return {token: probabilities[token] / total for token in kept}


def slow_draw(logits: Sequence[float], params: SamplingParams, uniform: float) -> int:
    if params.temperature == 0.0:
        return max(range(len(logits)), key=lambda token: (logits[token], -token))
    upto = 0.0
    for token, probability in slow_distribution(logits, params).items():
        upto += probability
        if upto > uniform:
            return token
    raise AssertionError("the probabilities do not sum to one")


# --- draws ---------------------------------------------------------------------------------------

MIXES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7},
    {"top_k": 3},
    {"top_k": 1},
    {"top_k": 300},
    {"top_p": 0.6},
    {"top_p": 0.95},
    {"top_p": 1e-9},
    {"min_p": 0.3},
    {"min_p": 1.0},
    {"min_p": 0.02, "top_p": 0.9},
    {"top_k": 5, "top_p": 0.8, "min_p": 0.1, "temperature": 0.8},
    {"top_k": 1000, "top_p": 0.99, "temperature": 1.3},
    {"top_k": 100_000},
]


@pytest.mark.parametrize("options", MIXES)
def test_draws_follow_the_slow_distribution(options: dict[str, Any]) -> None:
    params = SamplingParams(**options)
    expected = slow_distribution(LOGITS.tolist(), params)
    random, draws = Random(7), 3000
    uniforms = [random.random() for _ in range(draws)]
    found = Counter(draw(LOGITS.repeat(draws, 1), [params] * draws, uniforms))
    assert set(found) <= set(expected)
    for token, probability in expected.items():
        deviation = math.sqrt(draws * probability * (1 - probability))
        assert abs(found[token] - draws * probability) <= 5 * deviation + 1e-6, token


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("scale", [0.01, 0.3, 1.5, 6.0])
def test_every_draw_is_the_slow_one_however_many_candidates_it_takes(scale: float, ties: bool) -> None:
    """Flat logits take the widest look, steep ones the narrowest; equal logits rank by id."""
    logits = random_logits(len(MIXES), 4500, 11, scale=scale, ties=ties)
    params = [SamplingParams(**options) for options in MIXES]
    for seed in range(3):
        random = Random(seed)
        uniforms = [random.random() for _ in MIXES]
        expected = [slow_draw(*row) for row in zip(logits.tolist(), params, uniforms, strict=True)]
        assert draw(logits, params, uniforms) == expected
        assert draw(logits, params, uniforms, wait=False) == expected, "the first look leaves the others open"


@pytest.mark.parametrize("options", MIXES)
def test_the_ends_of_the_unit_interval_draw_what_is_kept(options: dict[str, Any]) -> None:
    params = SamplingParams(**options)
    # Probabilities that underflow to zero, and a forbidden token, stand in the last places.
    logits = torch.cat([LOGITS, torch.tensor([-4000.0, -math.inf])])[None]
    kept = list(slow_distribution(logits[0].tolist(), params))
    first, last = (draw(logits, [params], [uniform])[0] for uniform in (0.0, math.nextafter(1.0, 0.0)))
    assert first == kept[0]
    assert last in kept
    assert logits[0, last] > -4000.0


def test_a_tiny_temperature_is_the_argmax() -> None:
    assert next_token(LOGITS, completion(SamplingParams(temperature=1e-300))) == 2


def test_temperature_zero_is_the_first_argmax_and_draws_nothing() -> None:
    one = completion(SamplingParams(temperature=0.0, top_p=0.1), seed=3)
    before = one.sampling_state.random.getstate()
    assert next_token(torch.tensor([0.0, 5.0, 1.0, 5.0]), one) == 1
    assert one.sampling_state.random.getstate() == before


@pytest.mark.parametrize("options", MIXES)
def test_a_token_takes_one_number_from_its_generator_whatever_the_parameters(
    options: dict[str, Any],
) -> None:
    one, other = completion(SamplingParams(**options), seed=9), Random(9)
    next_token(LOGITS, one)
    other.random()
    assert one.sampling_state.random.getstate() == other.getstate()


def test_a_seed_gives_the_same_draws_and_no_seed_other_ones() -> None:
    def drawn(seed: int | None) -> list[int]:
        one = completion(SamplingParams(), seed=seed)
        return [next_token(LOGITS, one) for _ in range(40)]

    assert drawn(5) == drawn(5)
    assert drawn(5) != drawn(6)
    assert drawn(None) != drawn(None)
    assert drawn(-1) == drawn(-1), "OpenAI clients send negative seeds"
    assert drawn(-1) != drawn(1)


# --- rows and their neighbours -------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [259, 5000, 49_153])
def test_a_row_is_the_same_bit_for_bit_alone_and_among_any_others(vocab: int) -> None:
    random = Random(1)
    options = [*MIXES, {"temperature": 0.0}, {"temperature": 0.0, "logprobs": 4}]
    extras: list[dict[str, Any]] = [
        {}, {"logprobs": 3}, {"logprobs": 20}, {"logprobs": 0}, {"repetition_penalty": 1.3},
        {"presence_penalty": 0.5, "frequency_penalty": 0.2}, {"min_tokens": 9},
    ]  # fmt: skip
    params = [
        SamplingParams(**one, **{k: v for k, v in random.choice(extras).items() if k not in one})
        for one in options
    ]
    logits = random_logits(len(params), vocab, 5, scale=3.0, ties=True)
    logits[3] *= 0.05
    crowd = [completion(p, prompt=range(i), output=range(3), seed=i) for i, p in enumerate(params)]
    alone = [completion(p, prompt=range(i), output=range(3), seed=i) for i, p in enumerate(params)]
    for _ in range(2):
        together = sample(logits, crowd)
        assert together == [sample(row[None], [one])[0] for row, one in zip(logits, alone, strict=True)]
        order = random.sample(range(len(params)), len(params))
        crowd, alone = [crowd[i] for i in order], [alone[i] for i in order]
        logits = logits[order].flip(-1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("options", [{"temperature": 0.0}, *MIXES])
def test_a_row_that_is_not_finite_fails_alone(options: dict[str, Any], value: float) -> None:
    params = SamplingParams(**options, logprobs=2)
    logits = random_logits(3, 600, 2)
    expected = sample(logits, [completion(params, seed=i) for i in range(3)])
    if value == -math.inf:
        logits[1] = value
    else:
        logits[1, 17] = value
    found = sample(logits, [completion(params, seed=i) for i in range(3)])
    assert isinstance(found[1], EngineFailure)
    assert (found[0], found[2]) == (expected[0], expected[2])


def test_a_vocabulary_with_dead_entries_is_sampled_from_the_others() -> None:
    logits = torch.where(LOGITS > 1.0, LOGITS, -math.inf)
    for options in MIXES:
        assert next_token(logits, completion(SamplingParams(**options))) in (0, 2, 4)


# --- the device is not waited for ------------------------------------------------------------------

COMMON: dict[str, list[dict[str, Any]]] = {
    "greedy": [{"temperature": 0.0}],
    "temperature": [{"temperature": 0.7}],
    "top-k": [{"top_k": 40}],
    "a wide top-k": [{"top_k": 5000}],
    "top-p": [{"top_p": 0.9}],
    "min-p": [{"min_p": 0.05}],
    "mixed": [{"temperature": 0.0}, {}, *MIXES],
}


@pytest.mark.static_cuda
@pytest.mark.parametrize("name", COMMON)
def test_the_start_waits_for_nothing_whatever_the_logits_are(name: str) -> None:
    """On the CPU, where operators have values to depend on; flat logits leave most rows open."""
    rows = [completion(SamplingParams(**options)) for options in COMMON[name]]
    logits = random_logits(len(rows), 20_000, 3, scale=0.01)
    with watched() as operators:
        started = SAMPLER.start(logits, rows, wait=False)
    assert operators.waiting == []
    again = [completion(SamplingParams(**options)) for options in COMMON[name]]
    assert tokens(started.finish()) == tokens(sample(logits, again))


@pytest.mark.static_cuda
@pytest.mark.parametrize("name", COMMON)
def test_on_cuda_a_start_is_one_copy_there_and_one_back(name: str) -> None:
    rows = [completion(SamplingParams(**options)) for options in COMMON[name]]
    with fake_cuda() as operators:
        SAMPLER.start(torch.empty(len(rows), 20_000, device=DEVICE), rows, wait=False)
    assert operators.waiting == []
    assert (operators.to_device, operators.to_host) == (int(name != "greedy"), 1)
    assert operators.pinned == operators.to_device


@pytest.mark.static_cuda
@pytest.mark.parametrize("watch", [watched, fake_cuda])
def test_a_wait_would_be_noticed(watch: Any) -> None:
    rows = [completion(SamplingParams(top_p=0.9))]
    with watch() as operators, suppress(DataDependentOutputException):
        device = DEVICE if watch is fake_cuda else None
        SAMPLER.start(torch.zeros(1, 20_000, device=device), rows, wait=True)
    assert operators.waiting


@pytest.mark.static_cuda
def test_a_row_that_is_not_settled_is_known_by_the_one_copy_and_costs_a_second_look() -> None:
    rows = [completion(SamplingParams(top_p=0.9)), completion(SamplingParams(top_p=0.9))]
    logits = torch.stack([random_logits(1, 5000, 4, scale=0.01)[0], 50.0 * random_logits(1, 5000, 4)[0]])
    started = SAMPLER.start(logits, rows, wait=False)
    with watched() as operators:
        started.finish()
    assert len([name for name in operators.names if name.startswith("aten.log_softmax")]) == 1


# --- log-probabilities ---------------------------------------------------------------------------


def test_logprobs_are_those_of_the_logits_before_everything_else() -> None:
    params = SamplingParams(temperature=0.3, top_k=2, logit_bias={5: 100.0}, logprobs=3)
    (found,) = sample(LOGITS[None], [completion(params)])
    assert isinstance(found, Sampled)
    expected = LOGITS.log_softmax(-1)
    assert found.token == 5
    assert found.logprob == pytest.approx(float(expected[5]))
    assert found.entry is not None
    assert (found.entry.token_id, found.entry.logprob) == (5, found.logprob)
    assert [t.token_id for t in found.entry.top] == [2, 4, 0]
    assert [t.logprob for t in found.entry.top] == pytest.approx(expected[[2, 4, 0]].tolist())


def test_only_rows_that_ask_get_an_entry() -> None:
    rows = [completion(GREEDY), completion(replace(GREEDY, logprobs=0)), completion(GREEDY)]
    found = sample(LOGITS.repeat(3, 1), rows)
    entries = [one.entry for one in found if isinstance(one, Sampled)]
    assert [entry is not None for entry in entries] == [False, True, False]
    assert tokens(found) == [2, 2, 2]
