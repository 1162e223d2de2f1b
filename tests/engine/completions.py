"""Sequences without a model: what the scheduler and the block manager see of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from brainstacks.engine.completion import Completion
from brainstacks.engine.request import GenerationRequest, SamplingParams
from brainstacks.engine.scheduler import Row


def completion(
    prompt: int | Sequence[int],
    max_tokens: int = 10,
    arrival: int = 0,
    root: Hashable = (),
    priority: int = 0,
) -> Completion:
    """Args:
    prompt: its tokens, or how many of 0, 1, 2, ...
    """
    ids = range(prompt) if isinstance(prompt, int) else prompt
    request = GenerationRequest(
        f"r{arrival}", tuple(ids), SamplingParams(max_tokens=max_tokens), priority=priority
    )
    return Completion(request, 0, None, None, prefix_root=root, arrival=arrival)


def siblings(prompt: int, n: int, arrival: int = 0, max_tokens: int = 10) -> list[Completion]:
    """Several of one request, which the first computes the prompt for."""
    leader = completion(prompt, max_tokens, arrival)
    others = [Completion(leader.request, i, None, None, arrival=arrival, leader=leader) for i in range(1, n)]
    return [leader, *others]


def advance(rows: Sequence[Row], token: int = 0) -> None:
    """What a step does to the completions' counts."""
    for row in rows:
        row.completion.computed = row.start + row.count
        if row.completion.pending == 0:
            row.completion.output_ids.append(token)


def shown(rows: Sequence[Row]) -> list[tuple[int, int]]:
    return [(row.start, row.count) for row in rows]
