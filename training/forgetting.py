"""The forgetting matrix: what later stacks do to the losses of earlier domains (method 4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

from brainstacks.errors import ConfigError
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks
from training.encoding import Example
from training.objective import mean_nll

Kind = Literal["prefix", "ungated", "isolated"]


@dataclass(frozen=True)
class Losses:
    """Token-weighted NLL (nats) of one domain's answers, after t domains.

    Attributes:
        prefix: with the stacks that it was frozen with, 1..d; never changes, not by a bit.
        ungated: with all stacks there are, 1..t.
        isolated: with its own stack alone, which trained on top of 1..d-1.
    """

    prefix: float
    ungated: float
    isolated: float


@dataclass(frozen=True)
class ForgettingMatrix:
    """L[t][d], the losses of domain d after domain t >= d, both from 1 in curriculum order.

    Attributes:
        domains: that have a stack.
        rows: one per domain t so far; domain d <= t -> its losses.
    """

    domains: tuple[str, ...] = ()
    rows: tuple[Mapping[str, Losses], ...] = ()

    def add(self, domain: str, row: Mapping[str, Losses]) -> ForgettingMatrix:
        """The matrix with one domain more. Raises ConfigError: `row` does not cover just those so far."""
        domains = (*self.domains, domain)
        if set(row) != set(domains):
            raise ConfigError(
                f"the row after {domain!r} covers {', '.join(row)}; it must cover {', '.join(domains)}"
            )
        return ForgettingMatrix(domains, (*self.rows, row))

    def changed(self) -> tuple[str, ...]:
        """Domains whose prefix loss is not, bit for bit, what it was when they were frozen: none, if all is
        right."""
        return tuple(
            d for t, d in enumerate(self.domains) if len({row[d].prefix for row in self.rows[t:]}) > 1
        )

    def average(self, kind: Kind = "ungated") -> float:
        """A = 1/T sum_d L[T][d]; the lower, the better."""
        return sum(self._loss(len(self.rows) - 1, d, kind) for d in self.domains) / len(self.domains)

    def backward_transfer(self, kind: Kind = "ungated") -> float:
        """BWT = 1/(T-1) sum_{d<T} L[d][d] - L[T][d] (Lopez-Paz and Ranzato, 2017; NLL for accuracy).

        Above 0: later domains lowered the losses of earlier ones. 0 for a single domain.
        """
        last = len(self.rows) - 1
        return _mean(self._loss(t, d, kind) - self._loss(last, d, kind) for t, d in self._earlier())

    def forgetting(self, kind: Kind = "ungated") -> float:
        """F = 1/(T-1) sum_{d<T} L[T][d] - min_{d<=t<T} L[t][d] (Chaudhry et al., 2018; NLL for accuracy).

        Above 0: nats lost since each domain was at its best. 0 for a single domain.
        """
        last = len(self.rows) - 1
        return _mean(
            self._loss(last, d, kind) - min(self._loss(t, d, kind) for t in range(first, last))
            for first, d in self._earlier()
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        rows = [{d: asdict(losses) for d, losses in row.items()} for row in self.rows]
        return {"domains": list(self.domains), "rows": rows}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ForgettingMatrix:
        """What `to_dict` wrote, every float the same."""
        matrix = cls()
        for domain, row in zip(document["domains"], document["rows"], strict=True):
            matrix = matrix.add(domain, {d: Losses(**losses) for d, losses in row.items()})
        return matrix

    def _loss(self, t: int, domain: str, kind: Kind) -> float:
        return float(getattr(self.rows[t][domain], kind))

    def _earlier(self) -> list[tuple[int, str]]:
        return list(enumerate(self.domains[:-1]))


def measure_row(
    model: Any,
    hooks: CompositionHooks,
    bank: StackBank,
    domains: Sequence[str],
    examples: Mapping[str, Sequence[Example]],
) -> dict[str, Losses]:
    """The row after the last of `domains`, by the function that chooses snapshots.

    Args:
        domains: that have a stack, in curriculum order, keys of `bank`.
        examples: domain -> what its losses are measured on; the same at every row.
    """

    @cache  # compositions of the first and of the last domain coincide
    def loss(domain: str, on: tuple[str, ...]) -> float:
        return mean_nll(model, hooks, examples[domain], [bank.bind([dict.fromkeys(on, 1.0)])])

    every = tuple(domains)
    return {d: Losses(loss(d, every[: t + 1]), loss(d, every), loss(d, (d,))) for t, d in enumerate(every)}


def _mean(values: Iterable[float]) -> float:
    """Mean; 0.0 of none."""
    found = list(values)
    return sum(found) / len(found) if found else 0.0
