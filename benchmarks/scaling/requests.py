"""What a fleet is asked: compositions by popularity, conversations, and lengths of prompts and answers."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

COMPOSITIONS = 4
"""Compositions for each domain; the more popular a domain, the more of them have it."""
MOST_STACKS = 3
MOST_TURNS = 6
"""Of one conversation, so that it stays within a small base's context."""
BEFORE_S = 60.0
"""Conversations that began so long before the first request may still go on."""

Lengths = Sequence[tuple[int, int]]
"""(prompt tokens, answer tokens) of records."""


@dataclass(slots=True, eq=False)
class Request:
    """One request, and what became of it.

    Attributes:
        arrival, first, finish: seconds; of its first and its last token NaN until they are there.
        stacks: domains that its composition has.
        composition: its number.
        conversation: its number; the turns of one have one composition.
        history: prompt tokens that the conversation's earlier turns have computed, where they ran.
        new: its other prompt tokens.
        answer: tokens to generate.
        hits: of its stacks, those on the device when it came.
        reused: of `history`, the tokens that were found.
        steps: a replica's own count of steps at which it will have ended.
    """

    arrival: float
    stacks: tuple[str, ...]
    composition: int
    conversation: int
    history: int
    new: int
    answer: int
    first: float = math.nan
    finish: float = math.nan
    hits: int = 0
    reused: int = 0
    steps: int = 0

    @property
    def prompt(self) -> int:
        return self.history + self.new


@dataclass(frozen=True)
class Traffic:
    """Poisson arrivals of conversations.

    Attributes:
        domains: how many; number k is named by compositions in proportion to 1 / (k + 1).
        rate: requests a second.
        turns: requests of a conversation in the mean.
        pause: seconds between two of them in the mean.
    """

    domains: int
    rate: float
    turns: float = 2.0
    pause: float = 10.0

    def requests(self, count: int, lengths: Lengths, seed: int) -> list[Request]:
        """`count` requests in the order of arrival, from time 0 on; the same for every router."""
        random = np.random.default_rng(seed)
        compositions = compositions_of(self.domains, seed)
        popularity = zipf(len(compositions))
        begins = count / self.rate * 1.1 + 5  # seconds in which conversations begin; a little too many
        conversations = random.poisson((BEFORE_S + begins) * self.rate / self.turns)
        starts = np.sort(random.uniform(-BEFORE_S, begins, conversations))
        chosen = random.choice(len(compositions), conversations, p=popularity)
        turns = np.minimum(random.geometric(1 / self.turns, conversations), MOST_TURNS)
        pairs = iter(random.integers(0, len(lengths), int(turns.sum())).tolist())
        pauses = iter(random.exponential(self.pause, int(turns.sum())).tolist())
        found: list[Request] = []
        drawn = zip(starts.tolist(), chosen.tolist(), turns.tolist(), strict=True)
        for number, (when, composition, most) in enumerate(drawn):
            history = 0
            for _ in range(most):
                new, answer = lengths[next(pairs)]
                if when >= 0:
                    stacks = compositions[composition]
                    found.append(Request(when, stacks, composition, number, history, new, answer))
                history += new + answer
                when += next(pauses)
        return heapq.nsmallest(count, found, key=lambda request: request.arrival)


def domain_names(count: int) -> list[str]:
    """The most popular first."""
    return [str(number) for number in range(count)]


@cache
def compositions_of(domains: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """The most popular first; each domain begins one of them, and popular ones are found together.

    A composition has 1..3 stacks, each number as often.
    """
    random = np.random.default_rng((seed, domains))
    popularity, names = zipf(domains), domain_names(domains)
    made: list[tuple[str, ...]] = []
    for number in range(COMPOSITIONS * domains):
        size = min(int(random.integers(1, MOST_STACKS + 1)), domains)
        drawn = random.choice(domains, size, replace=False, p=popularity).tolist()
        if number < domains:
            drawn = [number, *(domain for domain in drawn if domain != number)][:size]
        made.append(tuple(names[domain] for domain in sorted(drawn)))
    return tuple(made)


def zipf(count: int) -> NDArray[np.float64]:
    """[count] probabilities, item k's in proportion to 1 / (k + 1)."""
    weights = 1 / np.arange(1, count + 1, dtype=np.float64)
    return np.asarray(weights / weights.sum())
