"""What a soak found, and how far it has come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

Say = Callable[[str], None]

MOST_SHOWN = 20
"""Failures that are written out; the rest is counted."""


@dataclass
class Outcome:
    """Attributes:
    counts: outcome of a request, or of a step -> how many.
    figures: what was measured, by a name that carries the unit.
    failures: everything that must not be.
    """

    counts: Counter[str] = field(default_factory=Counter)
    figures: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def require(self, condition: bool, failure: str) -> None:
        if not condition:
            self.failures.append(failure)

    @property
    def shown(self) -> list[str]:
        """The failures, cut short."""
        more = len(self.failures) - MOST_SHOWN
        return [*self.failures[:MOST_SHOWN], *([f"and {more} more"] if more > 0 else [])]


class Progress:
    """Says every few seconds how far a soak is, and about how long the rest takes."""

    def __init__(self, say: Say, every: float = 10.0, clock: Callable[[], float] = perf_counter) -> None:
        self._say = say
        self._every = every
        self._clock = clock
        self._begin = self._said = clock()

    def at(self, share: float, text: str) -> None:
        """`share` of the work, in 0..1, is done."""
        now = self._clock()
        if share > 0 and now - self._said >= self._every:
            self._said = now
            left = round((now - self._begin) * (1 - min(share, 1.0)) / share)
            self._say(f"  {share:.0%} {text}; about {left // 60}:{left % 60:02d} left")
