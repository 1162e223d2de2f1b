from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.fleet.member import METRICS_SECONDS, Member
from server.fleet.roster import SILENCE, Roster
from server.fleet.states import Alone, Place, ReplicaState
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Lost(Roster):
    """It is gone, and its machine with it."""

    async def exchange(self, *told: Any, **more: Any) -> list[ReplicaState]:
        raise ConnectionError("gone")

    async def metrics(self) -> dict[str, bytes]:
        raise ConnectionError("gone")


def member(name: str, engine: FakeEngine, roster: Roster, clock: Clock | None = None) -> Member:
    return Member(name, engine, roster, lambda: f"{name} 1\n".encode(), clock or Clock())


def test_a_server_of_its_own_is_a_fleet_of_one() -> None:
    engine = FakeEngine()
    engine.tiers["math"] = "disk"
    fleet = Alone(engine)
    assert fleet.states() == [
        ReplicaState("alone", 7, {"chat": Place(1, "device"), "math": Place(1, "disk")})
    ]
    assert fleet.problem() is None


async def test_a_change_that_one_announces_the_others_follow_at_once() -> None:
    roster, ahead, behind = Roster(), FakeEngine(), FakeEngine()
    one, other = member("a", ahead, roster), member("b", behind, roster)
    followed = asyncio.Event()

    async def reload() -> int:
        behind.generation = 8
        followed.set()
        return 8

    behind.stacks.reload = reload  # type: ignore[method-assign]
    following = asyncio.create_task(other.follow())
    await asyncio.sleep(0)
    ahead.generation = 8
    await one.announce()
    assert [state.generation for state in one.states()] == [8, 7], "b has not followed yet"
    await asyncio.wait_for(followed.wait(), 5)
    await asyncio.sleep(0)
    await one.announce()
    assert [state.generation for state in one.states()] == [8, 8]
    following.cancel()


async def test_a_generation_that_cannot_be_followed_is_tried_once_and_then_waited_for() -> None:
    roster, behind = Roster(), FakeEngine()
    looks = 0

    async def reload() -> int:
        nonlocal looks
        looks += 1
        return behind.generation

    behind.stacks.reload = reload  # type: ignore[method-assign]
    await roster.exchange(ReplicaState("a", 9, {}))
    following = asyncio.create_task(member("b", behind, roster).follow())
    for _ in range(50):
        await asyncio.sleep(0)
    assert looks == 1
    following.cancel()


async def test_a_roster_that_does_not_answer_is_a_problem_and_no_failure() -> None:
    clock, engine = Clock(), FakeEngine()
    lonely = member("a", engine, Lost(), clock)
    await lonely.announce()
    assert lonely.problem() is None
    clock.now += SILENCE + 1
    assert lonely.problem() is not None
    assert [state.name for state in lonely.states()] == ["a"]
    assert b'own_total{replica="a"} 2.0' in await lonely.metrics(b"# TYPE own counter\nown_total 2\n")


async def test_metrics_are_told_now_and_then_and_one_page_shows_all() -> None:
    clock, roster = Clock(), Roster()
    one, other = member("a", FakeEngine(), roster, clock), member("b", FakeEngine(), roster, clock)
    await one._exchange()
    assert await roster.metrics() == {"a": b"a 1\n"}
    page = await other.metrics(b"b 5\n")
    assert b'a{replica="a"} 1.0' in page
    assert b'b{replica="b"} 5.0' in page
    assert one._due_metrics() is None
    clock.now += METRICS_SECONDS
    assert one._due_metrics() == b"a 1\n"


async def test_who_leaves_is_not_counted_any_more() -> None:
    roster = Roster()
    one, other = member("a", FakeEngine(), roster), member("b", FakeEngine(), roster)
    await one.announce()
    await other.announce()
    await one.leave()
    await other.announce()
    assert [state.name for state in other.states()] == ["b"]
