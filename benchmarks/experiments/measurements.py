"""NLL of validation records under several contestants and seeds, and how sure their differences are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.materials import Materials
from benchmarks.instruments.results import markdown_table
from training.evaluation.intervals import SAMPLES, Estimate, interval, resampled_nll
from training.router.stacked_base import StackedBase, Weights

Nats = Mapping[str, Sequence[float]]
"""Domain -> NLL of each of its records, summed over the answer."""

Terms = Sequence[tuple[str, str, float]]
"""(contestant, domain, coefficient): a sum of domains' NLLs, such as the difference of two contestants."""

HOW_SURE = (
    "Brackets: 95% intervals by a bootstrap over validation records and seeds, paired between contestants; "
    "from one seed they know nothing of what another would have given. "
    "NLL in nats per answer token, token-weighted within a domain; `mean` is the plain mean over domains."
)


@dataclass(frozen=True)
class Measurements:
    """What was measured.

    Attributes:
        tokens: domain -> answer tokens of each record.
        nats: contestant -> one `Nats` per seed, of the same records throughout.
    """

    tokens: Mapping[str, Sequence[int]]
    nats: Mapping[str, Sequence[Nats]]

    def first(self, count: int) -> Measurements:
        """Those of the first records of each domain alone."""
        return Measurements(
            {d: tokens[:count] for d, tokens in self.tokens.items()},
            {
                name: [{d: values[:count] for d, values in nats.items()} for nats in seeds]
                for name, seeds in self.nats.items()
            },
        )

    def together(self, nats: Mapping[str, Sequence[Nats]]) -> Measurements:
        """With more contestants, measured on the same records."""
        return Measurements(self.tokens, {**self.nats, **nats})

    def nll(self, contestant: str, domain: str, seed: int) -> float:
        """Of one training; `seed` counts from 0."""
        return sum(self.nats[contestant][seed][domain]) / sum(self.tokens[domain])

    def estimate(self, terms: Terms) -> Estimate:
        """The sum of the `terms`, averaged over the seeds."""
        return Estimate(self._value(terms), interval(self._resampled_sum(terms)))

    def ratio(self, above: Terms, below: Terms) -> Estimate:
        """One sum over another."""
        resampled = self._resampled_sum(above) / self._resampled_sum(below)
        return Estimate(self._value(above) / self._value(below), interval(resampled))

    def mean(self, contestant: str) -> Estimate:
        return self.estimate(self._mean(contestant, 1.0))

    def difference(self, contestant: str, other: str) -> Estimate:
        """Mean NLL of the first less that of the other; below 0 the first is better."""
        return self.estimate([*self._mean(contestant, 1.0), *self._mean(other, -1.0)])

    def _mean(self, contestant: str, coefficient: float) -> Terms:
        return [(contestant, d, coefficient / len(self.tokens)) for d in self.tokens]

    def _value(self, terms: Terms) -> float:
        return sum(
            k * float(np.mean([self.nll(name, domain, s) for s in range(len(self.nats[name]))]))
            for name, domain, k in terms
        )

    @cached_property
    def _resampled(self) -> Mapping[tuple[str, str], NDArray[np.float64]]:
        """(contestant, domain) -> [S]: records and seeds drawn anew, the same draw for all contestants."""
        seeds = max(map(len, self.nats.values()))
        drawn = np.random.default_rng(len(self.tokens)).integers(0, seeds, (SAMPLES, seeds))
        found = {}
        for number, (domain, tokens) in enumerate(self.tokens.items()):
            columns = [nats[domain] for of_seeds in self.nats.values() for nats in of_seeds]
            table = resampled_nll(np.transpose(columns).tolist(), tokens, number)
            first = 0
            for name, of_seeds in self.nats.items():
                one = table[:, first : first + len(of_seeds)]
                first += len(of_seeds)
                mean = np.take_along_axis(one, drawn % len(of_seeds), 1).mean(1)
                centre = one.mean(1)
                found[name, domain] = centre + _small_sample(len(of_seeds)) * (mean - centre)
        return found

    def _resampled_sum(self, terms: Terms) -> NDArray[np.float64]:
        total = np.zeros(SAMPLES)
        for name, domain, k in terms:
            total += k * self._resampled[name, domain]
        return total

    def table(self, reference: str) -> str:
        """Markdown: a row per contestant, with its difference to `reference`."""
        rows = []
        for name in self.nats:
            found = [f"{self._value([(name, d, 1.0)]):.3f}" for d in self.tokens]
            difference = "" if name == reference else self.difference(name, reference)
            rows.append([name, *found, f"{self.mean(name).value:.3f}", difference])
        return markdown_table(["", *self.tokens, "mean", f"mean, less that of {reference}"], rows)

    def to_dict(self) -> dict[str, Any]:
        """Every figure and interval, and of every seed its own."""
        return {
            name: {
                "mean": self.mean(name).to_dict(),
                "domains": {d: self.estimate([(name, d, 1.0)]).to_dict() for d in self.tokens},
                "seeds": [{d: self.nll(name, d, s) for d in self.tokens} for s in range(len(of_seeds))],
            }
            for name, of_seeds in self.nats.items()
        }


def _small_sample(seeds: int) -> float:
    """What makes the spread of S resampled seeds that of the S: drawn anew they have (S - 1) / S of it."""
    return float(np.sqrt(seeds / (seeds - 1))) if seeds > 1 else 1.0


def nats_under(
    materials: Materials, stacked: StackedBase, weights: Mapping[str, Weights], split: str = "validation"
) -> Nats:
    """The records of each domain in `weights`, of one split, under its composition there."""
    found = {}
    for domain, composition in weights.items():
        examples = materials.examples[domain, split]
        found[domain] = stacked.losses(examples, [composition] * len(examples))
    return found


def throughout(domains: Sequence[str], composition: Weights) -> dict[str, Weights]:
    """The same composition for all domains."""
    return dict.fromkeys(domains, composition)


def each_own(domains: Sequence[str]) -> dict[str, Weights]:
    """Each domain's own stack alone: what a perfect domain label chooses."""
    return {d: {d: 1.0} for d in domains}


def nats_of_base(lab: Laboratory, domains: Sequence[str]) -> Nats:
    """The validation records of `domains` without any stack."""
    return nats_under(lab.materials, lab.stacked({}, lab.settings.quantization), throughout(domains, {}))


def answer_tokens(
    materials: Materials, domains: Sequence[str], split: str = "validation"
) -> dict[str, list[int]]:
    """Domain -> answer tokens of each of its records of one split."""
    return {d: [len(e.response) for e in materials.examples[d, split]] for d in domains}
