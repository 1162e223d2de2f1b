"""The forgetting matrix: what later stacks do to the losses of earlier domains (method 4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from rich.console import Console
from rich.table import Table

from brainstacks.errors import ConfigError
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks
from training.data.encoding import Example
from training.progress import tracked
from training.rounds.objective import mean_nll
from training.runs.processes import ALONE, Processes

Kind = Literal["prefix", "ungated", "isolated"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Losses:
    """Token-weighted NLL (nats) of one domain's answers, after t domains.

    Attributes:
        prefix: with the stacks 1..d, as they are held; never changes, not by a bit. What d trained on top of,
            where `earlier_stacks` is `all`.
        ungated: with all stacks there are, 1..t.
        isolated: with its own stack alone.
    """

    prefix: float
    ungated: float
    isolated: float


@dataclass(frozen=True)
class ForgettingMatrix:
    """L[t][d], the losses of domain d after domain t >= d, both from 1 in curriculum order.

    No kind is routed: a router is trained after the last domain, so that of routed losses there is but the
    last row, the evaluation's, and no figure of change.

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
        return ForgettingMatrix(domains, (*self.rows, {d: row[d] for d in domains}))

    def changed(self) -> tuple[str, ...]:
        """Domains whose prefix loss is not, bit for bit, what it was when they were frozen: none, if all is
        right."""
        return tuple(
            d for t, d in enumerate(self.domains) if len({row[d].prefix for row in self.rows[t:]}) > 1
        )

    def verdict(self) -> str:
        """Whether the zero-forgetting guarantee holds, in a sentence."""
        changed = ", ".join(self.changed())
        if changed:
            return (
                f"The prefix loss of {changed} has changed: a frozen stack, or the base, is not what it was."
            )
        return "No prefix loss has changed by a bit: what was frozen is as it was."

    def average(self, kind: Kind = "ungated") -> float:
        """A = 1/T sum_d L[T][d], nats per token; the lower, the better."""
        return sum(self._loss(len(self.rows) - 1, d, kind) for d in self.domains) / len(self.domains)

    def backward_transfer(self, kind: Kind = "ungated") -> float:
        """BWT = 1/(T-1) sum_{d<T} L[d][d] - L[T][d], nats per token (Lopez-Paz and Ranzato, 2017; NLL for
        accuracy).

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

    def figures(self) -> dict[Kind, dict[str, float]]:
        """Average, backward transfer and forgetting of each kind."""
        return {
            kind: {
                "average": self.average(kind),
                "backward_transfer": self.backward_transfer(kind),
                "forgetting": self.forgetting(kind),
            }
            for kind in KINDS
        }

    def show(self, console: Console) -> None:
        """Print the ungated losses after each domain; then, of each kind, the last ones and the figures."""
        table = Table(title="Loss of each domain by the stacks that are on (nats per token)")
        table.add_column("stacks on")
        for name in (*self.domains, "average", "backward transfer", "forgetting"):
            table.add_column(name, justify="right", overflow="fold")
        for after, row in zip(self.domains, self.rows, strict=True):
            table.add_row(f"all, after {after}", *(f"{losses.ungated:.4f}" for losses in row.values()))
        table.add_section()
        for kind, figures in self.figures().items():
            last = [f"{getattr(losses, kind):.4f}" for losses in self.rows[-1].values()]
            average, *changes = figures.values()
            table.add_row(kind, *last, f"{average:.4f}", *(f"{change:+.4f}" for change in changes))
        console.print(table)
        console.print(self.verdict())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the figures for people, and the losses that they follow from."""
        rows = [{d: asdict(losses) for d, losses in row.items()} for row in self.rows]
        return {"domains": list(self.domains), "rows": rows, "figures": self.figures()}

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
    processes: Processes = ALONE,
) -> dict[str, Losses]:
    """The row after the last of `domains`, by the function that chooses snapshots.

    Args:
        domains: that have a stack, in curriculum order, keys of `bank`.
        examples: domain -> what its losses are measured on; the same at every row. A domain without any has
            no losses, and its stack is part of the others' compositions all the same.
        processes: that share the forwards.
    """

    every = tuple(domains)
    compositions = {d: (every[: t + 1], every, (d,)) for t, d in enumerate(every) if d in examples}
    # Once each: compositions of the first and of the last domain coincide.
    wanted = list(dict.fromkeys((d, on) for d, three in compositions.items() for on in three))
    with tracked(wanted, "measuring what is forgotten", "losses") as each:
        losses = {
            (d, on): mean_nll(
                model, hooks, examples[d], [bank.bind([dict.fromkeys(on, 1.0)])], processes=processes
            )
            for d, on in each
        }
    return {d: Losses(*(losses[d, on] for on in three)) for d, three in compositions.items()}


def _mean(values: Iterable[float]) -> float:
    """Mean; 0.0 of none."""
    found = list(values)
    return sum(found) / len(found) if found else 0.0
