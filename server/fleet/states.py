"""The replicas of a fleet, as each last told of itself. A server on its own is a fleet of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from brainstacks.engine.interface import Engine
from brainstacks.stacks.cache_stats import Tier


@dataclass(frozen=True)
class Place:
    """Which version of a domain a replica serves, and where that is."""

    version: int
    tier: Tier


@dataclass(frozen=True)
class ReplicaState:
    """Attributes:
    name: of the replica, as in `x-brainstacks-replica`.
    generation: the registry's manifest number that it serves.
    places: by domain.
    """

    name: str
    generation: int
    places: Mapping[str, Place]

    @classmethod
    def of(cls, name: str, engine: Engine) -> ReplicaState:
        places = {one.domain: Place(one.version, one.residency) for one in engine.stacks.domains()}
        return cls(name, engine.stacks.generation, places)


class Fleet(Protocol):
    """What a replica knows of all."""

    @property
    def name(self) -> str:
        """This replica's."""

    def states(self) -> list[ReplicaState]:
        """Of all replicas, this one as it is now, the others as they last said; sorted by name."""

    def problem(self) -> str | None:
        """Why nothing is heard of the others, if so."""

    async def announce(self) -> None:
        """Have the others look at the registry now, and hear what they serve."""

    async def metrics(self, own: bytes) -> bytes:
        """What `/metrics` of all replicas shows, of which `own` is this one's."""


class Alone:
    """A server without others."""

    name = "alone"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def states(self) -> list[ReplicaState]:
        return [ReplicaState.of(self.name, self._engine)]

    def problem(self) -> str | None:
        return None

    async def announce(self) -> None:
        """There is nobody to tell."""

    async def metrics(self, own: bytes) -> bytes:
        return own
