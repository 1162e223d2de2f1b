"""The replicas, and what a router knows of them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial

from benchmarks.scaling.profile import Profile
from benchmarks.scaling.replica import Replica


@dataclass(frozen=True)
class Room:
    """For stacks, of each replica: on the device, and in host memory beside it."""

    device: int
    host: int


class Fleet:
    """Equal replicas, and what they tell a router of themselves.

    Attributes:
        holders: stack -> numbers of the replicas where it has room on the device.
    """

    def __init__(self, profile: Profile, room: Room, replicas: int) -> None:
        self.profile = profile
        self.holders: defaultdict[int, set[int]] = defaultdict(set)
        self.replicas = [
            Replica(profile, room.device, room.host, partial(self._told, number))
            for number in range(replicas)
        ]

    def _told(self, number: int, stack: int, there: bool) -> None:
        (self.holders[stack].add if there else self.holders[stack].discard)(number)
