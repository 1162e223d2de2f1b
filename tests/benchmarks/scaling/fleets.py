"""Small replicas for the tests of the simulation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.scaling.profile import Profile
from benchmarks.scaling.requests import Request

PROFILE = Profile(
    name="made up",
    step=0.01,
    row=0.001,
    stack=0.002,
    pair=0.0005,
    token=0.0001,
    token_stack=0.00002,
    loads={"host": 0.003, "disk": 0.5, "bucket": 1.0},
    source="disk",
    while_loading=1.0,
    stack_bytes=1 << 20,
)


def profile(**changes: Any) -> Profile:
    return replace(PROFILE, **changes)


def request(
    arrival: float = 0.0,
    stacks: tuple[str, ...] = (),
    answer: int = 1,
    *,
    new: int = 1,
    conversation: int = 0,
) -> Request:
    """One of a conversation without a history."""
    return Request(arrival, stacks, 0, conversation, 0, new, answer)
