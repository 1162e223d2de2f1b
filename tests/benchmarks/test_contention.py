"""Busy processes are always ended, a fair share is one, and a measurement ends when its time is over."""

from __future__ import annotations

import psutil
import pytest

from benchmarks.contention import busy, decode_rate, fair_share, report
from benchmarks.serving.traffic import random_prompts
from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from tests.tiny import VOCAB

PROMPTS = random_prompts(VOCAB, 7, 3, seed=0)


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children()}


def test_busy_processes_end_with_the_block_also_when_it_fails() -> None:
    before = children()

    def fail() -> None:
        with busy(2):
            assert len(children() - before) == 2
            raise RuntimeError("the block fails")

    with pytest.raises(RuntimeError, match="the block fails"):
        fail()
    assert children() == before


@pytest.mark.parametrize(
    ("cores", "threads", "processes", "share"),
    [(2, 2, 0, 1.0), (2, 2, 2, 0.5), (2, 2, 8, 0.2), (8, 2, 4, 1.0), (4, 8, 0, 1.0), (4, 4, 4, 0.5)],
)
def test_a_fair_share_gives_every_runnable_thread_the_same(
    cores: int, threads: int, processes: int, share: float
) -> None:
    assert fair_share(cores, threads, processes) == pytest.approx(share)


def test_a_measurement_ends_with_its_time_and_leaves_nothing_running(tiny_base: BaseModel) -> None:
    engine = StepEngine(tiny_base, None, EngineConfig(prefix_caching=False))
    ticks = iter(range(100))
    rate = decode_rate(engine, PROMPTS, 5.0, clock=lambda: float(next(ticks)))
    assert rate == 3.0, "three rows, a step a second"
    assert next(ticks) == 6
    assert not engine.has_work


def test_a_context_that_is_full_ends_a_measurement_early(tiny_base: BaseModel) -> None:
    engine = StepEngine(tiny_base, None, EngineConfig(max_context=12))
    ticks = iter(range(100))
    assert decode_rate(engine, PROMPTS[:1], 1000.0, clock=lambda: float(next(ticks))) == 1.0
    assert next(ticks) == 5, "four tokens after the first"


def test_the_share_is_of_what_is_fair_beside_the_fewest_processes() -> None:
    documents, table = report({(1, 0): [100.0, 100.0], (1, 2): [40.0, 50.0]}, cores=2, threads=2)
    alone, beside = documents
    assert (alone["fair_share"], alone["of_fair_share"].median) == (1.0, 1.0)
    assert beside["of_undisturbed"].rounds == (0.4, 0.5)
    assert beside["of_fair_share"].rounds == (0.8, 1.0)
    assert "0.50" in table
