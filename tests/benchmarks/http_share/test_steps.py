"""Steps are compared with those that do as much, and a step's time is all until the next begins."""

from __future__ import annotations

import pytest

from benchmarks.http_share.steps import Period, Step, StepLog, decode_ms, periods
from benchmarks.serving.engine_batch import advance, fixed, request
from benchmarks.serving.traffic import random_prompts
from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from tests.tiny import VOCAB


def decode(rows: int, seconds: float) -> Period:
    return Period(Step(0.0, rows=rows, computed=rows, given=rows), seconds)


def test_the_log_counts_what_each_step_computes_gives_and_begins(tiny_base: BaseModel) -> None:
    engine = StepEngine(tiny_base, None, EngineConfig(max_prefill_tokens=8, prefix_caching=False))
    log = StepLog()
    with log.noting(engine):
        for row, prompt in enumerate(random_prompts(VOCAB, 6, 2, seed=0)):
            engine.add(request(f"row-{row}", prompt, 3, fixed({})), lambda _: None)
        while engine.has_work:
            advance(engine)
    noted = [(step.rows, step.computed, step.given, step.begun) for step in log.steps]
    # Eight tokens of prompts a step: one whole prompt and a part of the other, then the rest.
    assert noted == [(2, 8, 1, 1), (2, 5, 2, 1), (2, 2, 2, 0), (1, 1, 1, 0)]
    assert [step.begin for step in log.steps] == sorted(step.begin for step in log.steps)
    before = len(log.steps)
    engine.add(request("later", (1, 2), 1, fixed({})), lambda _: None)
    advance(engine)
    assert len(log.steps) == before, "it notes nothing after the block"


def test_a_period_lasts_to_the_next_begin_and_belongs_to_the_window_of_its_own() -> None:
    steps = [Step(begin) for begin in (0.0, 1.0, 3.0, 6.0)]
    assert [each.seconds for each in periods(steps, 0.5, 3.0)] == [2.0]
    assert [each.seconds for each in periods(steps, 0.0, 9.0)] == [1.0, 2.0, 3.0], "the last has no end yet"


def test_decode_steps_of_as_many_rows_are_compared() -> None:
    one = [decode(4, 0.030), decode(4, 0.050), decode(3, 0.020), decode(1, 9.0)]
    other = [decode(4, 0.020), decode(4, 0.020), decode(3, 0.010), decode(3, 0.030), decode(2, 9.0)]
    # Two of four rows, one of three: (2 x 40 + 20) / 3 and (2 x 20 + 20) / 3.
    assert decode_ms(one, other) == pytest.approx((100 / 3, 20.0))


def test_steps_that_read_prompts_are_no_decode_steps() -> None:
    reading = Period(Step(0.0, rows=4, computed=40, given=4), 9.0)
    assert decode_ms([decode(4, 0.01), reading], [reading, decode(4, 0.02)]) == pytest.approx((10.0, 20.0))
    with pytest.raises(RuntimeError, match="ask for more --tokens"):
        decode_ms([reading], [reading])
    with pytest.raises(RuntimeError, match="as many rows"):
        decode_ms([decode(3, 0.01)], [decode(4, 0.01)])
