"""Who runs: first come first served, within the batch, prefill and KV budgets; nobody starves."""

from __future__ import annotations

from tests.engine.completions import completion, shown, siblings
from tests.engine.scheduled import Scheduled, completions

# --- budgets -------------------------------------------------------------------------------------


def test_a_prompt_is_computed_within_the_prefill_budget_then_one_token_a_step() -> None:
    made = Scheduled(completion(7), max_prefill_tokens=3)
    steps = [shown(made.step()) for _ in range(5)]
    assert steps == [[(0, 3)], [(3, 3)], [(6, 1)], [(7, 1)], [(8, 1)]]


def test_the_prefill_budget_is_shared_in_order_and_decoding_takes_none_of_it() -> None:
    first, second, third = completions(2, 5, 4)
    made = Scheduled(first, max_prefill_tokens=6)
    made.step()
    made.add(second)
    made.add(third)
    rows = made.step()
    assert [row.completion for row in rows] == [first, second, third]
    assert shown(rows) == [(2, 1), (0, 5), (0, 1)]
    assert shown(made.step()) == [(3, 1), (5, 1), (1, 3)]


def test_no_more_run_than_the_batch_holds_and_the_next_in_line_follows() -> None:
    line = completions(1, 1, 1, 1)
    made = Scheduled(*line, max_batch_size=2)
    made.step()
    assert made.running == line[:2]
    made.finish(line[1])
    made.step()
    assert made.running == [line[0], line[2]]


def test_the_head_of_the_queue_is_never_overtaken() -> None:
    running, large, small = completions(60, 50, 1)
    made = Scheduled(running, kv_cache_tokens=96)
    made.step()
    made.add(large)
    made.add(small)
    made.step()
    assert made.running == [running]
    assert made.waiting == [large, small]


def test_a_late_addition_takes_the_place_of_its_arrival() -> None:
    """Such as one whose stacks took long to load."""
    first, cold, later = completions(1, 1, 1)
    made = Scheduled(first, later, max_batch_size=1)
    made.step()
    made.add(cold)
    assert made.waiting == [cold, later]


def test_admission_leaves_a_block_for_each_that_runs() -> None:
    first, second, third = completions(16, 16, 16)
    made = Scheduled(first, second, third, kv_cache_tokens=64)
    made.step()
    assert made.running == [first, second], "a third would leave one block for two that grow"


# --- preemption ----------------------------------------------------------------------------------


def test_the_last_to_arrive_gives_up_its_blocks_and_computes_them_again() -> None:
    first, second = completions(16, 16, max_tokens=40)
    made = Scheduled(first, second, kv_cache_tokens=64)
    for _ in range(16):
        made.step()
    assert (first.length, second.length, made.manager.pool.available) == (32, 32, 0)
    rows = made.step()  # position 31 still fits; each needs a block for the next
    rows = made.step()
    assert [row.completion for row in rows] == [first]
    assert made.waiting == [second]
    assert (second.computed, len(second.blocks), len(second.output_ids)) == (0, 0, 17)
    assert made.preemptions == 1
    made.finish(first)
    assert shown(made.step()) == [(0, 33)], "prompt and output, as one prompt"
    assert shown(made.step()) == [(33, 1)]


def test_the_first_to_arrive_always_gets_on() -> None:
    line = completions(20, 30, 10, 25, 16, max_tokens=60)
    made = Scheduled(*line, kv_cache_tokens=96)
    order = []
    for _ in range(1000):
        made.step()
        for one in list(made.running):
            if len(one.output_ids) >= one.request.sampling.max_tokens:
                order.append(one)
                made.finish(one)
    assert order == line
    assert made.preemptions > 0
    assert made.manager.pool.used == 0


def test_log_probabilities_of_a_prompt_that_is_computed_again_are_collected_again() -> None:
    first, second = completions(30, 40, max_tokens=40)
    second.scores_prompt = True
    made = Scheduled(first, second, kv_cache_tokens=96, max_prefill_tokens=32)
    made.step()
    made.step()
    second.prompt_logprobs.append(None)
    for _ in range(20):
        made.step()
    assert made.preemptions == 1
    assert second.prompt_logprobs == []


# --- pauses --------------------------------------------------------------------------------------


def test_a_paused_sequence_gets_nothing_until_it_is_resumed() -> None:
    first, second = completions(4, 4)
    made = Scheduled(first, second)
    made.step()
    first.paused = True
    assert [row.completion for row in made.step()] == [second]
    first.paused = False
    assert [row.completion for row in made.step()] == [first, second]


def test_who_is_paused_makes_room_in_the_batch_and_is_first_in_line_when_resumed() -> None:
    slow, running, later, last = completions(4, 4, 4, 4)
    made = Scheduled(slow, running, max_batch_size=2)
    made.step()
    slow.paused = True
    made.add(later)
    made.add(last)
    made.step()
    assert (made.running, made.waiting) == ([running, later], [slow, last])
    slow.paused = False
    made.finish(later)
    made.step()
    assert (made.running, made.waiting) == ([slow, running], [last])


def test_who_is_paused_gives_up_its_memory_first() -> None:
    slow, growing, late = completions(16, 16, 16, max_tokens=40)
    made = Scheduled(slow, growing, kv_cache_tokens=64)
    made.step()
    slow.paused = True
    for _ in range(40):
        made.step()
    assert made.waiting == [slow]
    late.paused = True
    made.add(late)
    made.finish(growing)
    assert not made.can_run
    slow.paused = False
    assert made.can_run


def test_nothing_can_run_when_all_are_paused_or_there_is_none() -> None:
    made = Scheduled()
    assert not made.can_run
    one = completion(4)
    made.add(one)
    assert made.can_run
    made.step()
    one.paused = True
    assert not made.can_run
    assert made.schedule() == []


# --- several completions of one prompt -----------------------------------------------------------


def test_a_prompt_is_computed_once_for_all_completions() -> None:
    leader, *others = siblings(20, 3)
    made = Scheduled(leader, *others, max_prefill_tokens=12)
    assert shown(made.step()) == [(0, 12)]
    assert made.running == [leader]
    rows = made.schedule()
    assert shown(rows) == [(12, 8)]
    leader.computed = 20
    joined, copies = made.fork(leader)
    assert joined == others
    assert len(copies) == 2
    for one in (leader, *others):
        one.output_ids.append(0)
    assert shown(made.step()) == [(20, 1)] * 3


def test_places_are_kept_for_the_completions_of_a_prompt_that_is_being_computed() -> None:
    leader, *others = siblings(20, 3)
    late = completions(4, 4, 4, 4)[1:]
    made = Scheduled(leader, *others, *late, max_batch_size=4, max_prefill_tokens=64)
    made.step()
    assert made.running == [leader, late[0]]
    leader.output_ids.clear()
    assert made.fork(leader)[0] == others
    assert len(made.running) == 4


def test_completions_that_find_no_place_compute_the_prompt_on_their_own() -> None:
    leader, first, second = siblings(20, 3)
    made = Scheduled(leader, first, second, max_batch_size=2)
    made.schedule()
    leader.computed = 20
    assert made.fork(leader)[0] == [first]
    assert made.waiting == [second]
    made.finish(leader)
    assert (0, 20) in shown(made.schedule())


# --- deterministic -------------------------------------------------------------------------------


def test_deterministic_prompts_are_cut_at_fixed_places_whatever_else_there_is() -> None:
    first, second = completions(10, 10)
    made = Scheduled(first, second, max_prefill_tokens=8, deterministic=True)
    assert shown(made.step()) == [(0, 8)]
    assert shown(made.step()) == [(8, 2), (0, 8)]
    rows = made.schedule()
    assert [shown(together) for together in made.forwards(rows)] == [[(10, 1)], [(8, 2)]]


def test_deterministic_sequences_are_never_preempted() -> None:
    line = completions(16, 16, 16, max_tokens=32)
    made = Scheduled(*line, kv_cache_tokens=112, deterministic=True)
    made.step()
    assert made.running == line[:2]
    line[0].paused = line[1].paused = True
    assert not made.can_run
    assert made.schedule() == []
    assert made.running == line[:2]


def test_otherwise_a_step_is_one_forward() -> None:
    made = Scheduled(*completions(3, 5))
    rows = made.schedule()
    assert made.forwards(rows) == [rows]
    assert made.forwards([]) == []


# --- the end -------------------------------------------------------------------------------------


def test_a_sequence_can_be_dropped_while_it_waits_and_when_it_is_gone_already() -> None:
    first, second = completions(1, 1)
    made = Scheduled(first, second, max_batch_size=1)
    made.step()
    made.finish(second)
    assert made.waiting == []
    made.finish(second)
    made.finish(first)
    assert made.manager.pool.used == 0


# --- priority ------------------------------------------------------------------------------------


def test_those_of_a_lower_priority_go_first_and_equals_in_the_order_of_arrival() -> None:
    asked = [5, 0, 5, 0]
    line = [completion(1, arrival=i, priority=priority) for i, priority in enumerate(asked)]
    made = Scheduled(*line, max_batch_size=1)
    ran = []
    for _ in line:
        (row,) = made.step()
        ran.append(row.completion.arrival)
        made.finish(row.completion)
    assert ran == [1, 3, 0, 2]


def test_the_one_of_the_highest_priority_gives_up_its_memory() -> None:
    background = completion(15, arrival=0, priority=1, max_tokens=20)
    urgent = completion(15, arrival=1, max_tokens=20)
    made = Scheduled(background, urgent, kv_cache_tokens=48)
    for _ in range(4):
        made.step()
    assert made.running == [urgent]
    assert made.waiting == [background]
