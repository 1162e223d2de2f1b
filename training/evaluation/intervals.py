"""How sure a measured figure is: 95% intervals of shares and of token-weighted losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054
"""97.5% quantile of the standard normal distribution."""

SAMPLES = 2000
"""Bootstrap resamples."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval."""

    value: float
    interval: Interval

    @property
    def sign(self) -> int:
        """Of the whole interval: -1 or 1; 0 where it holds zero."""
        low, high = self.interval
        return int(low > 0) - int(high < 0)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:+.3f} [{low:+.3f}, {high:+.3f}]"

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "interval": list(self.interval)}


@dataclass(frozen=True)
class Share:
    """`count` out of `total` prompts, of which some may count half."""

    count: float
    total: int

    @property
    def value(self) -> float:
        """NaN when there are none."""
        return self.count / self.total if self.total else math.nan

    @property
    def interval(self) -> Interval:
        """Wilson's 95% interval; all of 0..1 when there are no prompts.

        centre = (p + z^2/2n) / (1 + z^2/n),  half = z / (1 + z^2/n) * sqrt(p(1-p)/n + z^2/4n^2)
        """
        n = self.total
        if n == 0:
            return (0.0, 1.0)
        p, scale = self.value, 1 + Z**2 / n
        centre = (p + Z**2 / (2 * n)) / scale
        half = Z / scale * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
        return (max(0.0, centre - half), min(1.0, centre + half))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.0%} ({low:.0%}..{high:.0%})" if self.total else "-"


def resampled_nll(
    losses: Sequence[Sequence[float]], tokens: Sequence[int], seed: int = 0
) -> NDArray[np.float64]:
    """Token-weighted NLL of bootstrap resamples of the records.

    Every column is resampled with the same records, so that differences of columns are paired.

    Args:
        losses: [R, M] nats, summed over the tokens of each record, in M modes.
        tokens: [R].

    Returns:
        [SAMPLES, M] nats per token.
    """
    values, weights = np.asarray(losses, np.float64), np.asarray(tokens, np.float64)
    random = np.random.default_rng(seed)
    drawn = random.multinomial(len(weights), np.full(len(weights), 1 / len(weights)), SAMPLES)
    resampled: NDArray[np.float64] = (drawn @ values) / (drawn @ weights)[:, None]
    return resampled


def interval(resampled: NDArray[np.float64]) -> Interval:
    """The middle 95% of [S] resampled figures."""
    low, high = np.quantile(resampled, (0.025, 0.975))
    return (float(low), float(high))
