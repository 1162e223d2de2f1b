"""The engine's steps as they happen: when each began, and what it computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from time import perf_counter
from unittest import mock

from brainstacks.engine.engine import StepEngine
from brainstacks.engine.runner.flight import Flight
from brainstacks.engine.scheduler import Row
from brainstacks.layers.bank import StackBank


@dataclass(slots=True)
class Step:
    """Attributes:
    begin: `perf_counter` seconds.
    rows: completions that it advanced.
    computed: tokens, those of prompts included; a step in which all rows decode computes one for each.
    given: tokens that it chose.
    begun: those among them that are the first of an answer.
    """

    begin: float
    rows: int = 0
    computed: int = 0
    given: int = 0
    begun: int = 0


class StepLog:
    """Attributes:
    steps: oldest first; written on the engine's thread.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []

    @contextmanager
    def noting(self, engine: StepEngine) -> Iterator[None]:
        """Note the steps of `engine` within the block."""
        step, launch = engine.step, engine._runner.launch

        def noted() -> None:
            self.steps.append(Step(perf_counter()))
            step()

        def launched(rows: Sequence[Row], bank: StackBank) -> Flight:
            now = self.steps[-1]
            now.rows += len(rows)
            for row in rows:
                now.computed += row.count
                if row.count >= row.completion.pending:
                    now.given += 1
                    now.begun += not row.completion.output_ids
            return launch(rows, bank)

        with (
            mock.patch.object(engine, "step", noted),
            mock.patch.object(engine._runner, "launch", launched),
        ):
            yield


@dataclass(frozen=True)
class Period:
    """A step, and the seconds from its begin to the next one's, with what the thread does in between."""

    step: Step
    seconds: float


def periods(steps: Sequence[Step], since: float, until: float) -> list[Period]:
    """Of the steps that began within [since, until), but for the last."""
    return [
        Period(one, following.begin - one.begin)
        for one, following in pairwise(steps)
        if since <= one.begin < until
    ]


def decode_ms(one: Sequence[Period], other: Sequence[Period]) -> tuple[float, float]:
    """Mean milliseconds of a decode step, in which no prompt is read, of two contestants: of steps of as many
    rows, weighted alike by how many of them both have.

    Raises:
        RuntimeError: there are none.
    """
    ours, theirs = _by_rows(one), _by_rows(other)
    weights = {rows: min(len(ours[rows]), len(theirs[rows])) for rows in ours.keys() & theirs.keys()}
    if not weights:
        raise RuntimeError("no two decode steps had as many rows; ask for more --tokens, or more --seconds")
    total = sum(weights.values()) / 1000
    first, second = (
        sum(weight * fmean(found[rows]) for rows, weight in weights.items()) / total
        for found in (ours, theirs)
    )
    return first, second


def _by_rows(found: Sequence[Period]) -> dict[int, list[float]]:
    """Rows of a decode step -> the seconds of each."""
    seconds: dict[int, list[float]] = {}
    for each in found:
        if each.step.rows and each.step.rows == each.step.computed:
            seconds.setdefault(each.step.rows, []).append(each.seconds)
    return seconds
