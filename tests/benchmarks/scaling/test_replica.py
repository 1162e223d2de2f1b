"""A simulated replica keeps the engine's rules, and closed forms where there are any."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from benchmarks.scaling.replica import Replica, Room
from benchmarks.scaling.requests import Request, domain_names, zipf
from benchmarks.scaling.simulation import in_turn, simulate
from brainstacks.stacks.stack_cache import MAX_OVERTAKEN
from tests.benchmarks.scaling.fleets import profile, request


def run(replica: Replica, until: float = math.inf) -> None:
    while replica.next <= until and replica.next < math.inf:
        replica.proceed(replica.next)


def test_a_full_batch_gives_as_many_tokens_a_second_as_its_step_allows() -> None:
    one = profile(max_batch=8)
    replica = Replica(one, Room(2, 0))
    replica.stacks.begin_with(["0", "1"])
    asked = [request(0.0, ("0", "1"), answer=101) for _ in range(8)]
    for each in asked:
        replica.add(each, 0.0)
    run(replica)
    decoding = {each.finish - each.first for each in asked[1:]}  # the first began alone
    assert statistics.fmean(decoding) / 100 == pytest.approx(one.decode(8, 2, 16), rel=0.01)


def test_a_single_line_waits_as_pollaczek_and_khinchine_say() -> None:
    """One row at a time, geometric answers, Poisson arrivals: an M/G/1 queue.

    Mean wait = rate E[S^2] / (2 (1 - rate E[S])).
    """
    one = profile(max_batch=1, token=0.0, token_stack=0.0)
    random = np.random.default_rng(0)
    count, each = 20_000, one.decode(1, 0, 0)
    answers = 1 + random.geometric(1 / 50, count)
    service = each * (answers - 1)
    rate = 0.6 / service.mean()
    arrivals = np.cumsum(random.exponential(1 / rate, count))
    asked = [request(float(at), answer=int(answer)) for at, answer in zip(arrivals, answers, strict=True)]
    simulate(asked, 0, one, Room(1, 0), 1, "random", seed=0)
    waits = [one.finish - one.arrival - seconds for one, seconds in zip(asked, service, strict=True)]
    expected = rate * (service**2).mean() / (2 * (1 - rate * service.mean()))
    assert statistics.fmean(waits) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("room", [2, 8, 20])
def test_hits_under_zipfs_law_are_those_of_ches_approximation(room: int) -> None:
    """Che et al. 2002: hits are the sum of p (1 - exp(-p t)), where the sum of 1 - exp(-p t) is the room."""
    domains = 50
    popularity = zipf(domains)
    drawn = np.random.default_rng(1).choice(domain_names(domains), 6000, p=popularity).tolist()
    ran = in_turn([request(stacks=(one,)) for one in drawn], profile(max_batch=1), Room(room, 0), at_once=1)
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - np.exp(-popularity * middle)).sum() < room else (low, middle)
    expected = (popularity * (1 - np.exp(-popularity * low))).sum()
    assert statistics.fmean(one.hits for one in ran.requests) == pytest.approx(expected, abs=0.02)


def test_steps_that_are_one_event_are_the_same_as_steps_one_by_one() -> None:
    """The obvious simulation, an event for each step, against the fast one."""

    def asked() -> list[Request]:
        random = np.random.default_rng(2)
        arrivals = np.cumsum(random.exponential(0.15, 300)).tolist()
        return [
            request(
                at, tuple(random.choice(domain_names(6), 2, replace=False).tolist()),
                int(random.integers(1, 40)),
                new=int(random.integers(1, 2500)), conversation=number,
            )
            for number, at in enumerate(arrivals)
        ]  # fmt: skip

    outcomes = []
    for most_alike in (1, 10**9):
        replica = Replica(profile(), Room(4, 1))
        replica.most_alike = most_alike
        ours = asked()
        for each in ours:
            run(replica, each.arrival)
            replica.add(each, each.arrival)
        run(replica)
        outcomes.append([time for each in ours for time in (each.first, each.finish)])
        assert replica.load == 0
    assert outcomes[0] == pytest.approx(outcomes[1])


def test_a_stack_is_loaded_once_for_all_who_wait_and_from_host_memory_the_next_time() -> None:
    replica = Replica(profile(), Room(1, 1))
    both = [request(0.0, ("0",), 1), request(0.0, ("0",), 1)]
    for each in both:
        replica.add(each, 0.0)
    run(replica)
    assert replica.stacks.loads == {"disk": 1}
    assert min(one.first for one in both) > 0.5
    for now, stack in ((10.0, "1"), (20.0, "0")):
        replica.add(request(now, (stack,)), now)
        run(replica)
    assert replica.stacks.loads == {"disk": 2, "host": 1}


def test_what_a_running_request_holds_stays_and_who_needs_the_room_waits_for_it() -> None:
    replica = Replica(profile(), Room(2, 0))
    replica.stacks.begin_with(["0", "1"])
    holding, waiting = request(0.0, ("0", "1"), 50), request(0.0, ("2",))
    replica.add(holding, 0.0)
    replica.add(waiting, 0.0)
    run(replica)
    assert waiting.first > holding.finish + 0.5
    assert holding.hits == 2
    assert waiting.hits == 0


def test_who_waits_for_room_is_passed_so_often_and_no_more() -> None:
    replica = Replica(profile(max_batch=100), Room(1, 0))
    replica.stacks.begin_with(["0"])
    replica.add(request(0.0, ("0",), 5), 0.0)
    waiting = request(0.0, ("1",))
    replica.add(waiting, 0.0)
    passing = [request(0.0, ("0",), 5) for _ in range(MAX_OVERTAKEN + 1)]
    for each in passing:
        replica.add(each, 0.0)
    run(replica)
    assert sum(each.first < waiting.first for each in passing) == MAX_OVERTAKEN


def test_a_conversation_finds_its_prompt_where_it_was_and_as_long_as_there_is_memory() -> None:
    replica = Replica(profile(kv_tokens=150), Room(1, 0))
    for conversation in (1, 2):
        replica.add(request(new=60, answer=40, conversation=conversation), 0.0)
        run(replica)
    for conversation, found in ((2, 100), (1, 0)):
        turn = Request(100.0, (), 0, conversation, 100, 5, 1)
        replica.add(turn, 100.0)
        run(replica)
        assert turn.reused == found
    assert Replica(profile(), Room(1, 0)).next == math.inf
