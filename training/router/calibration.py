"""Does a probability of p mean a measured weight of p? Two numbers, in plain Python.

    calibration error (ECE) = sum over bins b of  n_b / N * |mean p in b - mean w in b|
    Brier score             = mean (p - w)^2

The router's sigmoid is the weight that serving applies, so w is the measured weight in 0..1, not a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Calibration:
    """Both in 0..1, and 0 at best.

    Attributes:
        error: ECE.
        brier: Brier score.
    """

    error: float
    brier: float


def calibration(predicted: Sequence[float], measured: Sequence[float], bins: int = 10) -> Calibration:
    """Compare probabilities with the weights measured for the same prompts and domains, both in 0..1.

    Args:
        bins: of equal width; each holds its lower bound, the last one 1 too.

    Raises:
        ValueError: the two are empty or of different length.
    """
    pairs = list(zip(predicted, measured, strict=True))
    if not pairs:
        raise ValueError("calibration needs at least one probability")
    differences = [0.0] * bins
    for p, w in pairs:
        differences[min(int(p * bins), bins - 1)] += p - w
    error = sum(map(abs, differences)) / len(pairs)
    return Calibration(error, fmean((p - w) ** 2 for p, w in pairs))
