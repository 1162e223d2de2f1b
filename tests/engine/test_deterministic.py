"""Deterministic: tokens and log-probabilities are the same bits, whatever else is in the batch."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from brainstacks.base_model import load_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import CompositionRequest, GenerationRequest
from brainstacks.stacks.registry import Registry
from tests.engine import driving
from tests.engine.driving import Answer, finish, fixed, prompt_of, request, run, serve, start

pytestmark = pytest.mark.usefixtures("each_backend")

COMPOSITIONS = [
    CompositionRequest("routed"),
    fixed(chat=0.9, math=0.8),
    CompositionRequest("base"),
    fixed(code=1.0),
    CompositionRequest("ungated"),
]


def drawn(name: str, seed: int, wanted: int = 24) -> GenerationRequest:
    rng = random.Random(seed)
    return request(
        name,
        prompt_of(rng.randint(3, 90), seed=seed),
        COMPOSITIONS[seed % len(COMPOSITIONS)],
        max_tokens=wanted,
        logprobs=3,
        n=1 + (seed % 4 == 3),
        ignore_eos=True,
    )


def seen(answer: Answer) -> tuple[object, ...]:
    """Everything that depends on logits, as floats that have to be equal to the last bit."""
    routing = answer.routed.routing
    return (routing.probabilities, routing.weights, answer.ids(), answer.logprobs())


def among_others(engine: StepEngine, one: GenerationRequest, seed: int) -> Answer:
    """`one` with 15 different neighbours, which come, go and are aborted at random times."""
    rng = random.Random(seed)
    arrivals = [drawn(f"n{seed}-{i}", 1000 * seed + i, rng.randint(1, 40)) for i in range(15)]
    arrivals.insert(rng.randrange(12), one)
    answer = Answer()
    for arriving in arrivals:
        if arriving is one:
            engine.add(one, answer.events.append)
        else:
            start(engine, arriving)
        for _ in range(rng.randrange(3)):
            engine.step()
    engine.abort(f"n{seed}-{rng.randrange(15)}")
    finish(engine)
    return answer


def assert_independent(engine: StepEngine, seeds: range, crowds: int) -> None:
    for seed in seeds:
        one = drawn("one", seed)
        (alone,) = run(engine, one)
        assert not alone.errors
        for crowd in range(1, 1 + crowds):
            assert seen(among_others(engine, one, 10 * seed + crowd)) == seen(alone)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_float32_answers_are_the_same_bits_alone_and_in_a_crowd(tmp_path: Path, family: str) -> None:
    served = serve(tmp_path, family, router=True, deterministic=True, max_prefill_tokens=32)
    assert_independent(served.engine, range(5), 2)


@pytest.fixture(scope="module")
def packaged(each_backend: None, tmp_path_factory: pytest.TempPathFactory) -> StepEngine:
    """The packaged NF4 base with the demo stacks, as they are served."""
    directory = tmp_path_factory.mktemp("demo") / "registry"
    shutil.copytree(Path(__file__).parents[2] / "stacks_registry", directory)
    base = load_base("packaged:smollm2-135m-instruct", quantization="nf4", device="cpu")
    config = EngineConfig(backend=driving.backend, deterministic=True, max_prefill_tokens=64)
    return StepEngine(base, Registry(directory), config)


@pytest.mark.slow
def test_nf4_answers_are_the_same_bits_alone_and_in_a_crowd(packaged: StepEngine) -> None:
    assert_independent(packaged, range(2), 1)
