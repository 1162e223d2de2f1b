"""Where routers send requests."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from benchmarks.scaling.fleet import Fleet, Room
from benchmarks.scaling.requests import Request
from benchmarks.scaling.routers import (
    BOUND,
    ROUTERS,
    Affinity,
    AffinityAlone,
    Hashed,
    RoundRobin,
    Sticky,
    TwoChoices,
)
from tests.benchmarks.scaling.fleets import profile, request


def fleet(replicas: int, room: int = 4) -> Fleet:
    return Fleet(profile(), Room(room, 0), replicas)


def give(fleet: Fleet, number: int, each: Request) -> None:
    fleet.replicas[number].add(each, 0.0)


def test_the_fleet_knows_who_holds_what() -> None:
    some = fleet(2, room=1)
    some.replicas[0].stacks.begin_with([7])
    give(some, 1, request(stacks=(7,)))
    assert some.holders[7] == {0, 1}
    some.replicas[0].stacks.begin_with([8])
    assert some.holders[7] == {1}


def test_round_robin_takes_turns_and_two_choices_the_less_loaded() -> None:
    some = fleet(2)
    turns = RoundRobin(some, seed=0)
    assert [turns.choose(request()) for _ in range(4)] == [0, 1, 0, 1]
    give(some, 0, request(answer=9))
    assert {TwoChoices(some, seed).choose(request()) for seed in range(10)} == {1}


def test_affinity_goes_where_most_stacks_are_and_to_the_least_loaded_of_equals() -> None:
    some = fleet(3)
    some.replicas[1].stacks.begin_with([0, 1])
    some.replicas[2].stacks.begin_with([1])
    router = AffinityAlone(some, seed=0)
    assert router.choose(request(stacks=(0, 1))) == 1
    some.replicas[2].stacks.begin_with([0])
    give(some, 1, request())
    assert router.choose(request(stacks=(0, 1))) == 2


@pytest.mark.parametrize("kind", [AffinityAlone, Sticky])
def test_a_conversation_goes_back_to_where_its_prompt_was_read(kind: type[Affinity]) -> None:
    some = fleet(4)
    router = kind(some, seed=0)
    went = router.choose(request(conversation=5))
    assert [router.choose(Request(1.0, (), 0, 5, 80, 5, 1)) for _ in range(5)] == [went] * 5


@pytest.mark.parametrize("router", [Hashed, Affinity, AffinityAlone])
def test_no_replica_gets_more_than_the_bound(router: type[Affinity]) -> None:
    some = fleet(4)
    some.replicas[0].stacks.begin_with([0])
    chooser = router(some, seed=0)
    for count in range(1, 41):
        give(some, chooser.choose(request(stacks=(0,))), request(stacks=(0,), answer=1000))
        assert max(one.load for one in some.replicas) <= math.ceil(BOUND * count / 4)


def test_sticky_knows_nothing_of_stacks() -> None:
    some = fleet(2)
    some.replicas[0].stacks.begin_with([0, 1])
    assert {Sticky(some, seed).choose(request(stacks=(0, 1))) for seed in range(10)} == {0, 1}


def test_a_hot_stack_gets_copies_before_its_replica_is_full() -> None:
    some = fleet(10)
    some.replicas[0].stacks.begin_with([0])
    asked = [request(stacks=(0,)) for _ in range(20)]
    without, with_floor = AffinityAlone(some, seed=0), Affinity(some, seed=0)
    assert {without.choose(each) for each in asked} == {0}
    assert {with_floor.choose(each) for each in asked} == set(range(10))


def test_a_composition_is_hashed_to_one_replica_and_compositions_to_all() -> None:
    router = Hashed(fleet(8), seed=0)
    chosen = [router.choose(Request(0.0, (0,), composition, 0, 0, 1, 1)) for composition in range(200)]
    again = [router.choose(Request(0.0, (0,), composition, 0, 0, 1, 1)) for composition in range(200)]
    assert chosen == again
    assert set(Counter(chosen)) == set(range(8))


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_manages_with_one_replica(name: str) -> None:
    assert ROUTERS[name](fleet(1), 0).choose(request(stacks=(0,))) == 0
