"""A search for the best setting: short trainings of many, long ones of few, and no optimum at an edge."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from benchmarks.experiments.setting import Setting
from benchmarks.instruments.results import markdown_table

RATE = "rate"
SHOWN = 5
"""Settings of each length that the table has."""

Losses = Callable[[Sequence[Setting], int], Sequence[float]]
"""Of each setting the loss after a training of so many steps."""


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        start: where the search begins.
        ratios: knobs that a factor changes, without an end: name -> factor between neighbours, a power of
            two, so that there and back is the same number. `rate` is one of them.
        choices: other knobs: name -> values besides the start's.
    """

    start: Setting
    ratios: Mapping[str, float]
    choices: Mapping[str, Sequence[Any]]

    def near(self, setting: Setting) -> list[Setting]:
        """Every combination of a knob's neighbours and choices, in an order that the same seed repeats."""
        values = {
            **{n: [at / r, at, at * r] for n, r in self.ratios.items() for at in [getattr(setting, n)]},
            **{name: [getattr(self.start, name), *others] for name, others in self.choices.items()},
        }
        found = [replace(setting, **dict(zip(values, c, strict=True))) for c in product(*values.values())]
        random.Random(0).shuffle(found)
        return found


@dataclass(frozen=True)
class Budget:
    """What is spent on a space.

    Attributes:
        lengths: steps of a training, in every stage of the halving; the last is what the answer is for.
        widths: settings that are trained so long, at least at the first length, at most at the others.
    """

    lengths: tuple[int, ...]
    widths: tuple[int, ...]

    @property
    def steps(self) -> int:
        """About as many as a search takes: where the optimum lies further off, it takes more."""
        stages = sum(steps * count for steps, count in zip(self.lengths, self.widths, strict=True))
        return stages + 2 * self.lengths[-1]


@dataclass
class Search:
    """One space's search.

    At the first length the knobs with a ratio are bracketed one after another, `rate` first; then every
    choice is tried alone, those that help together, at a rate of their own, and combinations at random up to
    the width: near the best and, where a small space has no more of these, near the next best. The best of
    all these go on to the next length. At the last, `rate` is bracketed again: longer trainings want lower
    ones.

    Attributes:
        found: steps -> setting -> loss, in the order in which they were tried.
        worth: knob -> value -> loss less that of the best before it, at the first length.
    """

    space: Space
    budget: Budget
    losses: Losses
    found: dict[int, dict[Setting, float]] = field(default_factory=dict)
    worth: dict[str, dict[Any, float]] = field(default_factory=dict)

    def best(self) -> Setting:
        """Of the last length."""
        first, *longer = self.budget.lengths
        best = self.space.start
        for knob in (RATE, *(name for name in self.space.ratios if name != RATE)):
            best = self._bracketed(knob, best, first)
        self._choose(best, first)
        for steps, width in zip(longer, self.budget.widths[1:], strict=True):
            self._at(steps, self._ranked(first)[:width])
            first = steps
        return self._bracketed(RATE, self._ranked(first)[0], first)

    def _choose(self, best: Setting, steps: int) -> None:
        alone = {
            name: {value: replace(best, **{name: value}) for value in values}
            for name, values in self.space.choices.items()
        }
        self._at(steps, [setting for settings in alone.values() for setting in settings.values()])
        found = self.found[steps]
        for name, settings in alone.items():
            self.worth[name] = {value: found[s] - found[best] for value, s in settings.items()}
        helpful = {n: min(w, key=w.__getitem__) for n, w in self.worth.items() if min(w.values()) < 0}
        self._bracketed(RATE, replace(best, **helpful), steps)
        left, fresh = max(0, self.budget.widths[0] - len(found)), dict[Setting, None]()
        for centre in (best, *self._ranked(steps)):
            if len(fresh) < left:
                fresh |= dict.fromkeys(s for s in self.space.near(centre) if s not in found)
        self._at(steps, [*fresh][:left])

    def _bracketed(self, knob: str, around: Setting, steps: int) -> Setting:
        """The best along `knob`, with a neighbour on either side that is no better."""
        ratio, at = self.space.ratios[knob], getattr(around, knob)
        line = [replace(around, **{knob: value}) for value in (at / ratio, at, at * ratio)]
        while True:
            losses, edges = self._at(steps, line), (0, len(line) - 1)
            best = min(range(len(line)), key=lambda i: (losses[i], i in edges))
            at = getattr(line[best], knob)
            if best == 0:
                line.insert(0, replace(around, **{knob: at / ratio}))
            elif best == len(line) - 1:
                line.append(replace(around, **{knob: at * ratio}))
            else:
                return line[best]

    def _at(self, steps: int, settings: Sequence[Setting]) -> list[float]:
        found = self.found.setdefault(steps, {})
        missing = [setting for setting in dict.fromkeys(settings) if setting not in found]
        if missing:
            found.update(zip(missing, self.losses(missing, steps), strict=True))
        return [found[setting] for setting in settings]

    def _ranked(self, steps: int) -> list[Setting]:
        found = self.found[steps]
        return sorted(found, key=found.__getitem__)

    def tables(self, kind: str) -> str:
        """Markdown: the best of every length, and what each choice was worth alone, of a `kind` of stack."""
        best = [
            [f"{steps} steps, of {len(found)}", f"{found[setting]:.4f}", str(setting)]
            for steps, found in self.found.items()
            for setting in self._ranked(steps)[:SHOWN]
        ]
        alone = [
            [f"{name.replace('_', ' ')} {value}", f"{change:+.4f}"]
            for name, values in self.worth.items()
            for value, change in values.items()
        ]
        return "\n\n".join(
            (
                markdown_table([f"{kind}: the best", "nats", "setting"], best),
                markdown_table([f"{kind}: changed alone, {self.budget.lengths[0]} steps", "nats"], alone),
            )
        )
