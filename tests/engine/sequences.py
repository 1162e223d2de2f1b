"""Sequences without a model: what the scheduler and the block manager see of them."""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as SequenceOf

from brainstacks.engine.request import GenerationRequest, SamplingParams
from brainstacks.engine.scheduler import Row
from brainstacks.engine.sequence import Sequence


def sequence(
    prompt: int | SequenceOf[int], max_tokens: int = 10, arrival: int = 0, root: Hashable = ()
) -> Sequence:
    """Args:
    prompt: its tokens, or how many of 0, 1, 2, ...
    """
    ids = range(prompt) if isinstance(prompt, int) else prompt
    request = GenerationRequest(f"r{arrival}", tuple(ids), SamplingParams(max_tokens=max_tokens))
    return Sequence(request, 0, None, None, prefix_root=root, arrival=arrival)


def completions(prompt: int, n: int, arrival: int = 0, max_tokens: int = 10) -> list[Sequence]:
    """Several of one request, which the first computes the prompt for."""
    leader = sequence(prompt, max_tokens, arrival)
    others = [Sequence(leader.request, i, None, None, arrival=arrival, leader=leader) for i in range(1, n)]
    return [leader, *others]


def advance(rows: SequenceOf[Row], token: int = 0) -> None:
    """What a step does to the sequences' counts."""
    for row in rows:
        row.sequence.computed = row.start + row.count
        if row.sequence.pending == 0:
            row.sequence.output_ids.append(token)


def shown(rows: SequenceOf[Row]) -> list[tuple[int, int]]:
    return [(row.start, row.count) for row in rows]
