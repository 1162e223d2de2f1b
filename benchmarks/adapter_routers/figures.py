"""What the rounds of a contest come to: NLL, regret, calibration, and what random stacks would have given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from benchmarks.adapter_routers.contest import BASE, ORACLE, Round, mean_nll
from benchmarks.experiments.measurements import Measurements
from benchmarks.instruments.results import markdown_table
from training.evaluation.intervals import Estimate, interval, resampled_nll
from training.router.calibration import calibration
from training.router.stacked_base import Weights

T = TypeVar("T")

RANDOM = "random twins: "
"""Before the name of a contestant whose weights were applied to random stacks."""


@dataclass(frozen=True)
class Calibrated:
    """How far what a router tells of stacks is from whether they help.

    A stack helps a record that has it in its best combination: with the others as they are there, it lowers
    the loss, and a stack that is not there would raise it.

    Attributes:
        error: ECE, over records and stacks.
        brier: with its interval, by a bootstrap over records.
    """

    error: float
    brier: Estimate

    @classmethod
    def of(cls, told: Sequence[Weights], best: Sequence[Sequence[str]], stacks: Sequence[str]) -> Calibrated:
        """Of records with these `best` combinations, of which a router told these weights in 0..1."""
        predicted = [[row.get(stack, 0.0) for stack in stacks] for row in told]
        helps = [[float(stack in combination) for stack in stacks] for combination in best]
        found = calibration(_flat(predicted), _flat(helps))
        squares = [
            [sum((p - h) ** 2 for p, h in zip(ps, hs, strict=True)) / len(stacks)]
            for ps, hs in zip(predicted, helps, strict=True)
        ]
        resampled = resampled_nll(squares, [1] * len(squares))
        return cls(found.error, Estimate(found.brier, interval(resampled[:, 0])))


@dataclass(frozen=True)
class Figures:
    """Of all rounds together, each of which has records of its own.

    Attributes:
        stacks: domains, in the registry's order.
    """

    rounds: Sequence[Round]
    stacks: Sequence[str]

    @property
    def contestants(self) -> list[str]:
        """The best first, after the base; the oracle is last."""
        names = [name for name in self.rounds[0].nats if name not in (BASE, ORACLE)]
        return [BASE, *sorted(names, key=lambda name: self.measured.mean(name).value), ORACLE]

    @cached_property
    def measured(self) -> Measurements:
        """With the stacks of the registry, and of those that were measured so, with random ones."""
        nats = {name: [self._by_domain([f.nats[name] for f in self.rounds])] for name in self.rounds[0].nats}
        for name in self.rounds[0].random:
            nats[RANDOM + name] = [self._by_domain([f.random[name] for f in self.rounds])]
        tokens = self._by_domain([[len(e.response) for e in f.examples] for f in self.rounds])
        return Measurements(tokens, nats)

    def regret(self, name: str) -> Estimate:
        """Percent by which the mean NLL is above that of the oracle."""
        share = self.measured.ratio(self._mean(name), self._mean(ORACLE))
        low, high = share.interval
        return Estimate(100 * (share.value - 1), (100 * (low - 1), 100 * (high - 1)))

    def regrets(self, name: str) -> list[float]:
        """The same, seed by seed."""
        return [100 * (_of_round(f, name) / _of_round(f, ORACLE) - 1) for f in self.rounds]

    def random_share(self, name: str) -> Estimate:
        """Percent of a contestant's gain over the base that random stacks at its weights give too."""
        share = self.measured.ratio(self._gain(RANDOM + name), self._gain(name))
        low, high = share.interval
        return Estimate(100 * share.value, (100 * low, 100 * high))

    def calibrated(self) -> dict[str, Calibrated]:
        """By router."""
        best = _flat([f.best for f in self.rounds])
        return {
            name: Calibrated.of(_flat([f.beliefs[name] for f in self.rounds]), best, self.stacks)
            for name in self.rounds[0].beliefs
        }

    def table(self) -> str:
        """A row per contestant, the best first."""
        measured, calibrated = self.measured, self.calibrated()
        rows = []
        for name in self.contestants:
            domains = [f"{measured.estimate([(name, d, 1.0)]).value:.3f}" for d in measured.tokens]
            less = "" if name == BASE else measured.difference(name, BASE)
            regret = "" if name == ORACLE else _percent(self.regret(name))
            seeds = "" if name == ORACLE else " / ".join(f"{value:.1f}" for value in self.regrets(name))
            row = [name, *domains, f"{measured.mean(name).value:.3f}", less, regret, seeds]
            if name in calibrated:
                row += [_plain(calibrated[name].brier), f"{calibrated[name].error:.3f}"]
            rows.append([*row, *[""] * (len(measured.tokens) + 7 - len(row))])
        header = [
            "",
            *measured.tokens,
            "mean",
            "mean, less the base's",
            "regret, %",
            "by seed",
            "Brier",
            "ECE",
        ]
        return markdown_table(header, rows)

    def control(self) -> str:
        """A row per contestant that was measured with random twins: what those give of its gain, where it is
        sure that there is one.
        """
        rows = [
            [
                name,
                self.measured.difference(name, BASE),
                self.measured.difference(RANDOM + name, BASE),
                _percent(self.random_share(name)) if self.measured.difference(name, BASE).sign < 0 else "",
            ]
            for name in self.contestants
            if name != BASE and name in self.rounds[0].random
        ]
        return markdown_table(["", "trained stacks", "random twins", "share of the gain, %"], rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "validation_nll": self.measured.to_dict(),
            "regret_percent": {
                name: {**self.regret(name).to_dict(), "seeds": self.regrets(name)}
                for name in self.contestants
                if name != ORACLE
            },
            "calibration": {
                name: {"error": found.error, "brier": found.brier.to_dict()}
                for name, found in self.calibrated().items()
            },
            "chosen": [dict(f.chosen) for f in self.rounds],
        }

    def _mean(self, name: str, sign: float = 1.0) -> list[tuple[str, str, float]]:
        domains = self.measured.tokens
        return [(name, d, sign / len(domains)) for d in domains]

    def _gain(self, name: str) -> list[tuple[str, str, float]]:
        return [*self._mean(BASE), *self._mean(name, -1.0)]

    def _by_domain(self, values: Sequence[Sequence[T]]) -> dict[str, list[T]]:
        """Those of each domain's records, round after round."""
        found: dict[str, list[T]] = {}
        for domain, value in zip(_flat([f.domains for f in self.rounds]), _flat(values), strict=True):
            found.setdefault(domain, []).append(value)
        return found


def cost_table(milliseconds: Mapping[str, Sequence[float]]) -> str:
    """Of what is told for each prompt alone, the first of which is the base's prefill."""
    rows = []
    ((_, prefill), *_) = milliseconds.items()
    for name, spent in milliseconds.items():
        middle = sorted(spent)[len(spent) // 2]
        times = sorted(ours / base for ours, base in zip(spent, prefill, strict=True))[len(spent) // 2]
        rows.append([name, f"{middle:.1f}", f"{min(spent):.1f}..{max(spent):.1f}", f"{times:.2f}"])
    return markdown_table(["", "CPU ms, median", "min..max", "times the prefill"], rows)


def _of_round(found: Round, name: str) -> float:
    return mean_nll(list(zip(found.domains, found.examples, strict=True)), found.nats[name])


def _flat(values: Sequence[Sequence[T]]) -> list[T]:
    return [value for each in values for value in each]


def _percent(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{estimate.value:.1f} [{low:.1f}, {high:.1f}]"


def _plain(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{estimate.value:.3f} [{low:.3f}, {high:.3f}]"
