"""What a simulated fleet did for its requests, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from benchmarks.scaling.simulation import Run
from brainstacks.errors import ConfigError
from training.evaluation.intervals import Estimate

WARM_UP = 0.25
"""Of the requests, those at the start that are not counted: caches fill, lines grow."""

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Number of seeds -> the 97.5% quantile of Student's t with one degree of freedom less."""


@dataclass(frozen=True)
class Figures:
    """Of one simulation, between the warm-up and the last arrival.

    Attributes:
        first_p50, first_p95: seconds from a request's arrival to its first token.
        gap_p50, gap_p95: seconds between two tokens.
        tokens_per_second: generated, per replica.
        kept_up: tokens generated over tokens asked for; well below 1 where lines grow.
        hit_rate: of the stacks that requests name, those on the device when the request comes.
        loads: stacks brought to a device per request, from anywhere.
        far_loads: those of them from beyond host memory.
        reused: of the prompt tokens that earlier turns had computed, those that were found.
        imbalance: busy seconds of the busiest replica over the mean.
    """

    first_p50: float
    first_p95: float
    gap_p50: float
    gap_p95: float
    tokens_per_second: float
    kept_up: float
    hit_rate: float
    loads: float
    far_loads: float
    reused: float
    imbalance: float

    @classmethod
    def of(cls, run: Run) -> Figures:
        counted = run.requests[math.floor(len(run.requests) * WARM_UP) :]
        begin, end = counted[0].arrival, run.end
        waits = [request.first - request.arrival for request in counted]
        gaps = np.array([gap for one in run.replicas for gap in one.gaps if begin < gap[0] <= end])
        _, seconds, tokens = gaps.reshape(-1, 3).T
        made = float(tokens.sum()) + sum(begin < request.first <= end for request in run.requests)
        loads = [sum(one.stacks.loads.values()) for one in run.replicas]
        far = sum(one.stacks.loads[one.profile.source] for one in run.replicas)
        named = sum(len(request.stacks) for request in counted)
        history = sum(request.history for request in counted)
        busy = [one.busy for one in run.replicas]
        return cls(
            float(np.percentile(waits, 50)),
            float(np.percentile(waits, 95)),
            weighted(seconds, tokens, 0.5),
            weighted(seconds, tokens, 0.95),
            made / (end - begin) / len(run.replicas),
            made / sum(request.answer for request in counted),
            sum(request.hits for request in counted) / named if named else 1.0,
            sum(loads) / len(run.requests),
            far / len(run.requests),
            sum(request.reused for request in counted) / history if history else 1.0,
            max(busy) * len(busy) / sum(busy),
        )


def weighted(values: np.ndarray[Any, Any], weights: np.ndarray[Any, Any], share: float) -> float:
    """The smallest value that at least that share of the weight does not exceed; NaN of nothing."""
    if not len(values):
        return math.nan
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, share * reached[-1])])


def over_seeds(runs: Sequence[Figures]) -> dict[str, Estimate]:
    """The mean of each figure over the seeds, and its 95% interval by Student's t. Raises ConfigError."""
    if len(runs) not in STUDENT:
        raise ConfigError(f"{len(runs)} seeds give no interval here; take {min(STUDENT)} to {max(STUDENT)}")
    return {field.name: estimate([getattr(run, field.name) for run in runs]) for field in fields(Figures)}


def estimate(values: Sequence[float]) -> Estimate:
    mean = statistics.fmean(values)
    half = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, (mean - half, mean + half))
