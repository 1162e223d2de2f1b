"""Who is there, and what each serves: one in a fleet, which all replicas tell of themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from server.fleet.states import ReplicaState

PATIENCE = 1.0
"""Seconds after which a replica that waits for news is answered without any."""
SILENCE = 5 * PATIENCE
"""Seconds without a word after which a replica counts as gone."""


class Roster:
    """Keeps nothing that cannot be told again: it may end and be started anew.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, tuple[ReplicaState, float]] = {}
        self._metrics: dict[str, bytes] = {}
        self._news = asyncio.Event()

    async def exchange(
        self, state: ReplicaState, metrics: bytes | None = None, seen: int | None = None
    ) -> list[ReplicaState]:
        """Note `state`; what all replicas told, sorted by name.

        Args:
            metrics: what `/metrics` shows of it; None where that was told already.
            seen: answer as soon as a replica serves a generation above this one, at the latest after
                `PATIENCE`; None answers at once.
        """
        newest = self._newest()
        self._told[state.name] = state, self._clock()
        if metrics is not None:
            self._metrics[state.name] = metrics
        if self._newest() > newest:
            self._news.set()
            self._news = asyncio.Event()
        if seen is not None and self._newest() <= seen:
            with suppress(TimeoutError):  # nothing new is an answer too
                await asyncio.wait_for(self._news.wait(), PATIENCE)
        return self._live()

    async def leave(self, name: str) -> None:
        """It ends, and is not waited for."""
        self._told.pop(name, None)

    async def metrics(self) -> dict[str, bytes]:
        """Of each replica that lives, as it last told; by name."""
        return {
            state.name: self._metrics[state.name] for state in self._live() if state.name in self._metrics
        }

    def _newest(self) -> int:
        return max((state.generation for state in self._live()), default=0)

    def _live(self) -> list[ReplicaState]:
        """Forgets those that are gone."""
        now = self._clock()
        self._told = {name: told for name, told in self._told.items() if now - told[1] <= SILENCE}
        self._metrics = {name: text for name, text in self._metrics.items() if name in self._told}
        return [state for _, (state, _) in sorted(self._told.items())]
