"""Where routers send requests."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.scaling.replica import Replica, Room
from benchmarks.scaling.requests import Request
from benchmarks.scaling.routers import ROUTERS, Affinity, Hashed, RoundRobin, Sticky, TwoChoices
from server.fleet.placement import FEW, bound
from tests.benchmarks.scaling.fleets import profile, request


def fleet(replicas: int) -> list[Replica]:
    return [Replica(profile(), Room(2, 1)) for _ in range(replicas)]


def test_round_robin_takes_turns_and_two_choices_the_less_loaded() -> None:
    some = fleet(2)
    turns = RoundRobin(some, seed=0)
    assert [turns.choose(request()) for _ in range(4)] == [0, 1, 0, 1]
    some[0].add(request(answer=9), 0.0)
    assert {TwoChoices(some, seed).choose(request()) for seed in range(10)} == {1}


def test_affinity_goes_where_most_stacks_are_at_that_moment_and_to_the_least_loaded_of_equals() -> None:
    some = fleet(3)
    some[1].stacks.begin_with(["0", "1"])
    some[2].stacks.begin_with(["1"])
    router, each = Affinity(some, seed=0), [request(stacks=("0", "1"), conversation=one) for one in range(3)]
    assert router.choose(each[0]) == 1
    some[2].stacks.begin_with(["0"])
    some[1].add(request(), 0.0)
    assert router.choose(each[1]) == 2
    some[2].stacks.begin_with(["2"])  # so that 1 is in host memory, which is not as near
    assert router.choose(each[2]) == 1


@pytest.mark.parametrize("name", ["affinity", "affinity, no floor", "sticky"])
def test_a_conversation_goes_back_to_where_its_prompt_was_read(name: str) -> None:
    router = ROUTERS[name](fleet(4), 0)
    went = router.choose(request(conversation=5))
    assert [router.choose(Request(1.0, (), 0, 5, 80, 5, 1)) for _ in range(5)] == [went] * 5


@pytest.mark.parametrize("name", ["hashed", "affinity", "affinity, no floor", "sticky"])
def test_no_replica_gets_more_than_the_bound_and_one_gets_that(name: str) -> None:
    some = fleet(4)
    some[0].stacks.begin_with(["0"])
    router = ROUTERS[name](some, 0)
    reached = False
    for _ in range(40):
        most = bound([one.load for one in some])
        some[router.choose(request(stacks=("0",)))].add(request(stacks=("0",), answer=1000), 0.0)
        assert max(one.load for one in some) <= most
        reached |= max(one.load for one in some) == most
    assert reached


def test_sticky_knows_nothing_of_stacks() -> None:
    some = fleet(2)
    some[0].stacks.begin_with(["0", "1"])
    assert {Sticky(some, seed).choose(request(stacks=("0", "1"))) for seed in range(10)} == {0, 1}


def test_a_hot_stack_gets_copies_before_its_replica_is_full() -> None:
    some = fleet(10)
    some[0].stacks.begin_with(["0"])
    asked = [request(stacks=("0",), conversation=number) for number in range(2 * FEW)]
    without, with_floor = Affinity(some, seed=0, floor=False), Affinity(some, seed=0)
    assert {without.choose(each) for each in asked} == {0}
    assert {with_floor.choose(each) for each in asked} == set(range(10))


def test_a_composition_is_hashed_to_one_replica_and_compositions_to_all() -> None:
    router = Hashed(fleet(8), seed=0)
    chosen = [router.choose(Request(0.0, ("0",), composition, 0, 0, 1, 1)) for composition in range(200)]
    again = [router.choose(Request(0.0, ("0",), composition, 0, 0, 1, 1)) for composition in range(200)]
    assert chosen == again
    assert set(Counter(chosen)) == set(range(8))


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_manages_with_one_replica(name: str) -> None:
    assert ROUTERS[name](fleet(1), 0).choose(request(stacks=("0",))) == 0
