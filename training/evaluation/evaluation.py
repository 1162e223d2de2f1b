"""Answer NLL per domain: base, ungated, routed, only the own stack, and the oracle; figures and intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from training.evaluation.intervals import Interval, interval, resampled_nll
from training.router.stacked_base import Weights

MODES = ("base", "ungated", "routed", "only-own")
COMBINATION, ORACLE = SEARCHED = ("combination", "oracle")
"""The best of all combinations of stacks at 1.0; the best of these and of the softer weights that the search
for each record ended at (`outcomes.Outcome.oracle`)."""

Losses = dict[str, dict[str, float]]
"""Domain -> mode -> NLL (nats per answer token)."""


@dataclass(frozen=True)
class RecordResult:
    """What was measured for one validation record.

    Attributes:
        tokens: of its answer.
        nats: mode -> NLL, summed over the answer; with those of `SEARCHED` where they were measured.
        routed: what serving applies, domain -> weight.
        oracle: the fewest stacks within the recipe's `min_gain` of the best, softened where that helps; None
            where the oracle was not measured.
    """

    id: str
    domain: str
    tokens: int
    nats: Mapping[str, float]
    routed: Weights
    oracle: Weights | None = None


@dataclass(frozen=True)
class Evaluation:
    """Results of all records; every figure follows from these.

    A domain's NLL is the token-weighted mean of its records; `mean` is the plain mean over domains.
    Intervals are 95%, by a bootstrap over records, paired between modes, with fixed seeds.

    Attributes:
        stacks: domain -> digest of what was served, in the registry's order.
        router: digest of what routed; None where signatures alone did.
    """

    records: tuple[RecordResult, ...]
    stacks: Mapping[str, str]
    router: str | None

    @cached_property
    def by_domain(self) -> dict[str, list[RecordResult]]:
        found: dict[str, list[RecordResult]] = {}
        for record in self.records:
            found.setdefault(record.domain, []).append(record)
        return found

    @cached_property
    def compared(self) -> Evaluation:
        """The records on which the oracle was measured."""
        measured = tuple(record for record in self.records if record.oracle is not None)
        return replace(self, records=measured)

    @cached_property
    def modes(self) -> tuple[str, ...]:
        """Those that every record was measured in."""
        return tuple(m for m in (*MODES, *SEARCHED) if all(m in record.nats for record in self.records))

    @cached_property
    def nll(self) -> Losses:
        return {
            domain: {m: sum(r.nats[m] for r in found) / sum(r.tokens for r in found) for m in self.modes}
            for domain, found in self.by_domain.items()
        }

    @cached_property
    def mean(self) -> dict[str, float]:
        """Mode -> mean over domains."""
        return {m: sum(row[m] for row in self.nll.values()) / len(self.nll) for m in self.modes}

    @cached_property
    def mean_intervals(self) -> dict[str, Interval]:
        """Mode -> interval of `mean`."""
        mean = np.mean(list(self._resampled.values()), axis=0)
        return {m: interval(mean[:, i]) for i, m in enumerate(self.modes)}

    @cached_property
    def routed_less_base(self) -> dict[str, tuple[float, Interval]]:
        """Domain, and "mean" -> (NLL routed - NLL base, its interval); below 0 routing helps."""
        routed, base = self.modes.index("routed"), self.modes.index("base")
        spread = {d: drawn[:, routed] - drawn[:, base] for d, drawn in self._resampled.items()}
        spread["mean"] = np.mean(list(spread.values()), axis=0)
        nll = {**self.nll, "mean": self.mean}
        return {name: (nll[name]["routed"] - nll[name]["base"], interval(spread[name])) for name in nll}

    @property
    def relative_regret(self) -> dict[str, float]:
        """Mode of `SEARCHED` -> (mean NLL routed - its mean NLL) / the latter; {} where none was measured."""
        mean = self.compared.mean if self.compared.records else {}
        return {mode: mean["routed"] / mean[mode] - 1 for mode in SEARCHED if mode in mean}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the figures for people, and the records that they follow from."""
        compared = self.compared
        return {
            "nll": self.nll,
            "mean": self.mean,
            "mean_intervals": self.mean_intervals,
            "routed_less_base": self.routed_less_base,
            "compared": {"nll": compared.nll, "mean": compared.mean} if compared.records else None,
            "relative_regret": self.relative_regret,
            "stacks": dict(self.stacks),
            "router": self.router,
            "records": [asdict(record) for record in self.records],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Evaluation:
        """What `to_dict` wrote."""
        records = tuple(RecordResult(**record) for record in document["records"])
        return cls(records, document["stacks"], document["router"])

    def show(self, console: Console) -> None:
        """Print the tables; gains are against the base."""
        console.print(_table("Answer NLL on the validation split", self))
        if self.compared.records:
            count = len(self.compared.records)
            console.print(_table(f"The {count} records on which the oracle was measured", self.compared))
            for mode, regret in self.relative_regret.items():
                console.print(f"routed is {regret:+.1%} off the {mode}")

    @cached_property
    def _resampled(self) -> dict[str, NDArray[np.float64]]:
        """Domain -> [S, modes]; a seed for each, because their records are drawn independently."""
        return {
            domain: resampled_nll(
                [[record.nats[m] for m in self.modes] for record in found],
                [record.tokens for record in found],
                seed,
            )
            for seed, (domain, found) in enumerate(self.by_domain.items())
        }


def _table(title: str, evaluation: Evaluation) -> Table:
    table = Table(title=f"{title} (nats per token; gain over the base in brackets)")
    for name in ("domain", *evaluation.modes, "routed - base"):
        table.add_column(name, justify="left" if name == "domain" else "right", overflow="fold")
    for name, row in [*evaluation.nll.items(), ("mean", evaluation.mean)]:
        cells = [f"{v:.4f}" + (f" ({row['base'] - v:+.3f})" if m != "base" else "") for m, v in row.items()]
        value, (low, high) = evaluation.routed_less_base[name]
        last = name == list(evaluation.by_domain)[-1]
        table.add_row(name, *cells, f"{value:+.3f} [{low:+.3f}, {high:+.3f}]", end_section=last)
    return table
