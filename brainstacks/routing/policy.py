"""Probabilities -> weights, and which of them are applied. Plain Python.

`weights` keeps what every domain would get; only the `active` ones are applied, or even loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GATE_THRESHOLD = 0.12
"""A domain whose |weight| is at or below this is not applied (paper, section 5.3); a router may differ."""


@dataclass(frozen=True)
class Route:
    """What the meta-router and the policy make of one prompt.

    Attributes:
        probabilities: sigmoid per domain.
        weights: per domain, after the floors.
        active: the domains that are applied: those above the gate threshold.
        gap: probability that no domain's stack helps, by their signatures; None without any.
    """

    probabilities: Mapping[str, float]
    weights: Mapping[str, float]
    active: tuple[str, ...]
    gap: float | None = None


def floored(probabilities: Mapping[str, float], floors: Mapping[str, float]) -> dict[str, float]:
    """Weight per domain: its probability, or its floor where that is higher (paper, section 5.3)."""
    return {domain: max(p, floors.get(domain, 0.0)) for domain, p in probabilities.items()}


def active_domains(
    weights: Mapping[str, float], threshold: float = GATE_THRESHOLD, top: int | None = None
) -> tuple[str, ...]:
    """The domains that are applied, in the order of `weights`.

    Args:
        threshold: a domain with |weight| <= this is off.
        top: keep at most this many, the largest |weight| first, earlier domains first among equals.
    """
    on = [domain for domain, weight in weights.items() if abs(weight) > threshold]
    if top is not None:
        on = sorted(on, key=lambda domain: -abs(weights[domain]))[:top]
    return tuple(domain for domain in weights if domain in on)
