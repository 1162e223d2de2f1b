"""Does a probability of p mean a measured weight of p? Reliability bins, and two numbers. Plain Python.

    calibration error (ECE) = sum over bins b of  n_b / N * |mean p in b - mean w in b|
    Brier score             = mean (p - w)^2

The router's sigmoid is the weight that serving applies, so w is the measured weight in 0..1, not a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Bin:
    """The probabilities in [low, high); the last bin holds 1 too.

    Attributes:
        predicted: their mean.
        measured: mean of the weights measured for them.
    """

    low: float
    high: float
    count: int
    predicted: float
    measured: float


@dataclass(frozen=True)
class Calibration:
    """Attributes:
    bins: those that hold a probability, in order.
    error: ECE.
    brier: Brier score.
    """

    bins: tuple[Bin, ...]
    error: float
    brier: float


def calibration(predicted: Sequence[float], measured: Sequence[float], bins: int = 10) -> Calibration:
    """Compare probabilities with the weights measured for the same prompts and domains, both in 0..1.

    Args:
        bins: of equal width.

    Raises:
        ValueError: the two are empty or of different length.
    """
    pairs = list(zip(predicted, measured, strict=True))
    if not pairs:
        raise ValueError("calibration needs at least one probability")
    members: dict[int, list[tuple[float, float]]] = {}
    for p, w in sorted(pairs):
        members.setdefault(min(int(p * bins), bins - 1), []).append((p, w))
    found = tuple(
        Bin(i / bins, (i + 1) / bins, len(inside), fmean(p for p, _ in inside), fmean(w for _, w in inside))
        for i, inside in members.items()
    )
    error = sum(b.count * abs(b.predicted - b.measured) for b in found) / len(pairs)
    return Calibration(found, error, fmean((p - w) ** 2 for p, w in pairs))
