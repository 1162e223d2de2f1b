"""Answers are scored through the engine as training scores them, and given as in a batch of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.instruments.timing import timed
from benchmarks.serving.asking import ask, score
from benchmarks.serving.engine_batch import engine_batch, fixed
from brainstacks.base_model import BaseModel, load_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.errors import ContextTooLong
from training.data.encoding import Example
from training.rounds.objective import mean_nll

EXAMPLES = [Example(f"e{i}", (5, 6, 7 + i), tuple(range(20, 24 + i))) for i in range(2)]


def test_an_answer_has_the_nll_that_training_gives_it(tiny_directory: Path, tiny_base: BaseModel) -> None:
    engine = StepEngine(tiny_base, None, EngineConfig(prefix_caching=False))
    plain = load_base(tiny_directory, quantization="none", device="cpu", dtype=torch.float32)
    for example in EXAMPLES:
        expected = mean_nll(plain.model, engine.hooks, [example])
        found = score(engine, example)
        assert found.nats / len(example.response) == pytest.approx(expected, abs=1e-5)
        assert found.seconds > 0


def test_what_the_engine_refuses_is_raised(tiny_base: BaseModel) -> None:
    engine = StepEngine(tiny_base, None, EngineConfig(max_context=6))
    with pytest.raises(ContextTooLong):
        score(engine, EXAMPLES[1])


def test_an_answer_is_that_of_a_batch_of_one(tiny_base: BaseModel) -> None:
    engine = StepEngine(tiny_base, None, EngineConfig())
    prompt = EXAMPLES[0].prompt
    answer = ask(engine, prompt, fixed({}), tokens=3)
    assert (answer.tokens,) == timed(engine_batch(engine, [prompt], [{}]), 3).tokens
    assert answer.first_token_s > 0
    assert answer.router_share == 0
