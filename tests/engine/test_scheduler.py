"""Who runs: first come first served, within the batch, prefill and KV budgets; slots stay dense."""

from __future__ import annotations

import random

import torch

from brainstacks.config import EngineConfig
from brainstacks.engine.request import GenerationRequest, SamplingParams
from brainstacks.engine.scheduler import Row, Scheduler
from brainstacks.engine.sequence import Sequence


def sequence(prompt: int, max_tokens: int = 10, name: str = "r") -> Sequence:
    request = GenerationRequest(name, tuple(range(prompt)), SamplingParams(max_tokens=max_tokens))
    return Sequence(request, 0, torch.Generator(), None)


def scheduler(*sequences: Sequence, **limits: int) -> Scheduler:
    made = Scheduler(EngineConfig(**limits))
    for one in sequences:
        made.add(one)
    return made


def advance(rows: list[Row]) -> None:
    """What a step does to the sequences' counts."""
    for row in rows:
        row.sequence.computed = row.start + row.count
        if row.sequence.pending == 0:
            row.sequence.output_ids.append(0)


def shown(rows: list[Row]) -> list[tuple[int, int]]:
    return [(row.start, row.count) for row in rows]


def test_a_prompt_is_computed_within_the_prefill_budget_then_one_token_a_step() -> None:
    made = scheduler(sequence(7), max_prefill_tokens=3)
    steps = []
    for _ in range(5):
        rows = made.schedule()
        steps.append(shown(rows))
        advance(rows)
    assert steps == [[(0, 3)], [(3, 3)], [(6, 1)], [(7, 1)], [(8, 1)]]


def test_the_prefill_budget_is_shared_in_order_and_decoding_takes_none_of_it() -> None:
    first, second, third = sequence(2), sequence(5), sequence(4)
    made = scheduler(first, max_prefill_tokens=6)
    advance(made.schedule())
    made.add(second)
    made.add(third)
    rows = made.schedule()
    assert [row.sequence for row in rows] == [first, second, third]
    assert shown(rows) == [(2, 1), (0, 5), (0, 1)]
    advance(rows)
    assert shown(made.schedule()) == [(3, 1), (5, 1), (1, 3)]


def test_no_more_run_than_the_batch_holds_and_the_next_in_line_follows() -> None:
    sequences = [sequence(1) for _ in range(4)]
    made = scheduler(*sequences, max_batch_size=2)
    made.schedule()
    assert made.running == sequences[:2]
    made.finish(sequences[1])
    made.schedule()
    assert made.running == [sequences[0], sequences[2]]


def test_kv_memory_is_reserved_for_the_longest_that_each_can_become() -> None:
    small, large, late = sequence(10, 10), sequence(20, 30), sequence(10, 10)
    made = scheduler(small, large, late, kv_cache_tokens=100)
    made.schedule()
    assert made.running == [small, large], "3 x 50 would exceed 100"
    made.finish(large)
    made.schedule()
    assert made.running == [small, late]


def test_the_head_of_the_queue_is_never_overtaken() -> None:
    running, large, small = sequence(10, 40), sequence(50, 40), sequence(1, 1)
    made = scheduler(running, kv_cache_tokens=100)
    made.schedule()
    made.add(large)
    made.add(small)
    made.schedule()
    assert made.running == [running]
    assert list(made.waiting) == [large, small]


def test_a_sequence_that_waits_is_dropped_without_a_move() -> None:
    first, second = sequence(1), sequence(1)
    made = scheduler(first, second, max_batch_size=1)
    made.schedule()
    assert made.finish(second) is None
    assert not made.waiting
    assert made.finish(second) is None


def test_slots_stay_dense_and_each_move_names_who_moved() -> None:
    rng = random.Random(0)
    made = scheduler(max_batch_size=8)
    places: dict[int, Sequence] = {}
    for _ in range(200):
        if rng.random() < 0.5:
            made.add(sequence(1))
            made.schedule()
            for one in made.running:
                if one not in places.values():
                    places[one.slot if one.slot is not None else -1] = one
        elif made.running:
            gone = rng.choice(made.running)
            slot = gone.slot
            move = made.finish(gone)
            assert gone.slot is None
            if move is None:
                places.pop(slot if slot is not None else -1)
            else:
                source, target = move
                assert target == slot
                places[target] = places.pop(source)
        assert [one.slot for one in made.running] == list(range(len(made.running)))
        assert places == dict(enumerate(made.running))
