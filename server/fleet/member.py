"""A replica's part in its fleet: it tells the roster what it serves, and follows who is ahead."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from brainstacks.engine.interface import Engine
from brainstacks.errors import BrainstacksError
from server.fleet.merged_metrics import merged
from server.fleet.roster import SILENCE
from server.fleet.states import ReplicaState

log = logging.getLogger(__name__)

METRICS_SECONDS = 5.0
"""How often it tells its metrics; a scrape of another replica sees them so old."""


class RosterCalls(Protocol):
    """`Roster`, wherever it is."""

    async def exchange(
        self, state: ReplicaState, metrics: bytes | None = None, seen: int | None = None
    ) -> list[ReplicaState]: ...

    async def leave(self, name: str) -> None: ...

    async def metrics(self) -> dict[str, bytes]: ...


class Member:
    """Implements `states.Fleet`.

    Args:
        render: what `/metrics` shows of this replica alone.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        roster: RosterCalls,
        render: Callable[[], bytes],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._engine = engine
        self._roster = roster
        self._render = render
        self._clock = clock
        self._others: list[ReplicaState] = []
        self._heard = clock()
        self._rendered = -METRICS_SECONDS
        self._followed = 0  # the newest generation that it has looked for

    def states(self) -> list[ReplicaState]:
        """See `states.Fleet`."""
        mine = ReplicaState.of(self.name, self._engine)
        return sorted([mine, *self._others], key=lambda state: state.name)

    def problem(self) -> str | None:
        """See `states.Fleet`."""
        silent = self._clock() - self._heard
        if silent <= SILENCE:
            return None
        return (
            f"nothing was heard of other replicas for {silent:.0f} s; they follow the registry by themselves"
        )

    async def announce(self) -> None:
        """See `states.Fleet`."""
        try:
            self._hear(await self._roster.exchange(ReplicaState.of(self.name, self._engine)))
        except Exception as error:  # what was changed is durable, and others will look at it in time
            log.warning("the roster of replicas cannot be told of a change: %s", error)

    async def metrics(self, own: bytes) -> bytes:
        """See `states.Fleet`."""
        try:
            told = await self._roster.metrics()
        except Exception as error:
            log.warning("the roster of replicas does not tell their metrics: %s", error)
            told = {}
        return merged({**told, self.name: own})

    async def follow(self) -> None:
        """Exchange states until it is cancelled; what goes wrong is told by `problem`."""
        while True:
            try:
                await self._exchange()
            except Exception as error:
                log.warning("the roster of replicas does not answer: %s", error)
                await asyncio.sleep(1.0)  # Ray starts it anew meanwhile

    async def leave(self) -> None:
        await self._roster.leave(self.name)

    async def _exchange(self) -> None:
        state = ReplicaState.of(self.name, self._engine)
        seen = max(state.generation, self._followed)
        self._hear(await self._roster.exchange(state, self._due_metrics(), seen))
        newest = max((other.generation for other in self._others), default=0)
        if newest > seen:
            self._followed = newest
            try:
                await self._engine.stacks.reload()
            except BrainstacksError as error:  # the next look of `registry_poll` tells it in /ready
                log.warning("generation %d of another replica cannot be followed: %s", newest, error.message)

    def _hear(self, states: list[ReplicaState]) -> None:
        self._others = [state for state in states if state.name != self.name]
        self._heard = self._clock()

    def _due_metrics(self) -> bytes | None:
        if self._clock() - self._rendered < METRICS_SECONDS:
            return None
        self._rendered = self._clock()
        return self._render()
