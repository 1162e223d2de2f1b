"""Selection NLL by step: what learns how fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.trainings import Training
from benchmarks.instruments.results import markdown_table

Curve = Sequence[tuple[int, float]]
"""(step, selection NLL), the start first."""


def steps_to(curve: Curve, target: float) -> float | None:
    """Where `curve` first comes down to `target`, interpolated between evaluations; None if it never does."""
    for (a, before), (b, after) in pairwise(curve):
        if before <= target:
            return float(a)
        if after <= target:
            return a + (b - a) * (before - target) / (before - after)
    return None


def steps_to_the_end_of(others: Sequence[Curve], curves: Sequence[Curve]) -> list[float | None]:
    """Per seed: `steps_to` of a curve and the other's final loss; 0 where the other ends no lower than both
    began."""
    return [steps_to(curve, other[-1][1]) for curve, other in zip(curves, others, strict=True)]


def curve_of(lab: Laboratory, stacks: Mapping[str, Training]) -> Curve:
    """The mean over the domains."""
    histories = [lab.trained(t).history for t in stacks.values()]
    return [
        (int(points[0]["step"]), fmean(p["val_loss"] for p in points))
        for points in zip(*histories, strict=True)
    ]


def curve_table(curves: Mapping[str, Sequence[Curve]], most: int = 9) -> str:
    """Markdown: the mean over the seeds, at `most` steps of all."""
    steps = [step for step, _ in next(iter(curves.values()))[0]]
    shown = sorted({round(i * (len(steps) - 1) / (most - 1)) for i in range(most)})
    rows = [
        [name, *(f"{fmean(c[i][1] for c in found):.3f}" for i in shown)] for name, found in curves.items()
    ]
    return markdown_table(["step", *(str(steps[i]) for i in shown)], rows)
