from __future__ import annotations

import asyncio

import pytest

from server.fleet.roster import SILENCE, Roster
from server.fleet.states import ReplicaState

pytestmark = pytest.mark.anyio


def state(name: str, generation: int = 1) -> ReplicaState:
    return ReplicaState(name, generation, {})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_everybody_hears_of_everybody() -> None:
    roster = Roster()
    assert await roster.exchange(state("b")) == [state("b")]
    assert await roster.exchange(state("a", 2)) == [state("a", 2), state("b")]


async def test_who_waits_is_told_of_a_new_generation_at_once() -> None:
    roster = Roster()
    waiting = asyncio.ensure_future(roster.exchange(state("a"), seen=1))
    await asyncio.sleep(0)
    assert not waiting.done()
    await roster.exchange(state("b", 2))
    assert await waiting == [state("a"), state("b", 2)]


async def test_who_is_behind_does_not_wait() -> None:
    roster = Roster()
    await roster.exchange(state("b", 5))
    assert await asyncio.wait_for(roster.exchange(state("a"), seen=1), 0.5) == [state("a"), state("b", 5)]


async def test_no_news_is_an_answer_too() -> None:
    roster = Roster()
    assert await roster.exchange(state("a"), seen=1) == [state("a")]


async def test_who_is_silent_is_gone() -> None:
    clock = Clock()
    roster = Roster(clock)
    await roster.exchange(state("a"), metrics=b"a 1\n")
    clock.now = SILENCE + 1
    await roster.exchange(state("b"), metrics=b"b 1\n")
    assert await roster.exchange(state("b")) == [state("b")]
    assert await roster.metrics() == {"b": b"b 1\n"}


async def test_who_leaves_is_not_waited_for() -> None:
    roster = Roster()
    await roster.exchange(state("a"))
    await roster.leave("a")
    assert await roster.exchange(state("b")) == [state("b")]


async def test_metrics_stay_until_they_are_told_anew() -> None:
    roster = Roster()
    await roster.exchange(state("a"), metrics=b"a 1\n")
    await roster.exchange(state("a"))
    assert await roster.metrics() == {"a": b"a 1\n"}
