"""Which combinations each domain's prompts take, and what each stack does for other domains' prompts.

The paper says that medical prompts route to the stacks of chat and math in 97% of cases, measured on what
the stacks were trained on. Here it is asked on validation records, of the router and of the measured oracle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from training.data.encoding import Example
from training.evaluation.evaluation import Evaluation
from training.evaluation.intervals import Interval, Share, interval, resampled_nll
from training.progress import tracked
from training.router.stacked_base import StackedBase, Weights, domains_of, name_of

PAPER_CLAIM = ("medical", ("chat", "math"), 0.97)
"""Prompts of this domain take (at least) these stacks, in this share of cases (paper, section 6; n = 33)."""


@dataclass(frozen=True)
class Choices:
    """The compositions of one domain's prompts.

    Attributes:
        combinations: name of the active stacks, in the curriculum's order -> share of prompts, the most
            frequent first.
        mean_weights: stack -> mean weight, 0 where it is off.
        uses_others: prompts that take another domain's stack.
        without_own: prompts that do not take their own domain's.
    """

    combinations: Mapping[str, Share]
    mean_weights: Mapping[str, float]
    uses_others: Share
    without_own: Share

    def taking(self, stacks: Collection[str], *, alone: bool = False) -> Share:
        """Prompts that take all of `stacks`; with `alone`, and no other."""
        wanted, total = set(stacks), self.uses_others.total
        sets = {name: set(domains_of(name)) for name in self.combinations}
        fits = [n for n, taken in sets.items() if (taken == wanted if alone else wanted <= taken)]
        return Share(sum(self.combinations[n].count for n in fits), total)


@dataclass(frozen=True)
class RouterAnalysis:
    """Per domain of prompts, the router's choices and the oracle's.

    Attributes:
        stacks: in the curriculum's order.
        routed: of all records.
        oracle: of the records on which it was measured.
        agreement: of these, the share for which the router applies just the oracle's stacks.
    """

    stacks: tuple[str, ...]
    routed: Mapping[str, Choices]
    oracle: Mapping[str, Choices]
    agreement: Mapping[str, Share]

    def claim(self, domain: str, stacks: Collection[str]) -> dict[str, Share] | None:
        """How often prompts of `domain` take `stacks`, and these alone; None where either is not there."""
        if domain not in self.routed or not set(stacks) <= set(self.stacks):
            return None
        found = {}
        for who, choices in (("router", self.routed), ("oracle", self.oracle)):
            if domain in choices:
                found[who] = choices[domain].taking(stacks)
                found[f"{who}, no other"] = choices[domain].taking(stacks, alone=True)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; a share is its count, total, value and interval."""
        claim = self.claim(*PAPER_CLAIM[:2])
        return {
            "stacks": list(self.stacks),
            "routed": {d: _choices_dict(c) for d, c in self.routed.items()},
            "oracle": {d: _choices_dict(c) for d, c in self.oracle.items()},
            "agreement": {d: _share_dict(s) for d, s in self.agreement.items()},
            "paper_claim": {w: _share_dict(s) for w, s in claim.items()} if claim is not None else None,
        }

    def show(self, console: Console) -> None:
        """Print who takes what; intervals are Wilson's 95%."""
        table = Table(title="Stacks that prompts take (mean weight; most frequent combination)")
        for name in (
            "prompts of",
            *self.stacks,
            "combination",
            "uses others",
            "without own",
            "as the oracle",
        ):
            table.add_column(name, overflow="fold")
        for domain, choices in self.routed.items():
            weights = [f"{choices.mean_weights[stack]:.2f}" for stack in self.stacks]
            name, share = next(iter(choices.combinations.items()))
            agreement = str(self.agreement[domain]) if domain in self.agreement else "-"
            shares = (f"{name or 'base'} {share.value:.0%}", str(choices.uses_others))
            table.add_row(domain, *weights, *shares, str(choices.without_own), agreement)
        console.print(table)
        domain, stacks, said = PAPER_CLAIM
        for who, share in (self.claim(domain, stacks) or {}).items():
            console.print(f"{domain} prompts that take {' + '.join(stacks)}: {who} {share}; paper {said:.0%}")


def analyse(evaluation: Evaluation) -> RouterAnalysis:
    """The choices in `evaluation`, among the stacks that were served then."""
    stacks = tuple(evaluation.stacks)
    everything, compared = evaluation.by_domain, evaluation.compared.by_domain
    return RouterAnalysis(
        stacks,
        {d: choices(d, [r.routed for r in found], stacks) for d, found in everything.items()},
        {d: choices(d, [r.oracle or {} for r in found], stacks) for d, found in compared.items()},
        {
            d: Share(sum(set(r.routed) == set(r.oracle or {}) for r in found), len(found))
            for d, found in compared.items()
        },
    )


def choices(domain: str, chosen: Sequence[Weights], stacks: Sequence[str]) -> Choices:
    """Count the compositions of the prompts of `domain`; what a composition names is active."""
    total = len(chosen)
    sets = [[s for s in stacks if s in weights] for weights in chosen]
    counts = Counter(map(name_of, sets))
    return Choices(
        {name: Share(count, total) for name, count in counts.most_common()},
        {s: sum(weights.get(s, 0.0) for weights in chosen) / total for s in stacks},
        Share(sum(any(s != domain for s in taken) for taken in sets), total),
        Share(sum(domain not in taken for taken in sets), total),
    )


@dataclass(frozen=True)
class Transfer:
    """What single stacks do for each domain's answers: the paper's transferable primitives.

    Attributes:
        base: domain -> NLL of the base (nats per answer token).
        nll: domain -> stack -> NLL with that stack alone, at 1.0.
        gain_intervals: domain -> stack -> 95% of base - nll, by a paired bootstrap over records.
    """

    base: Mapping[str, float]
    nll: Mapping[str, Mapping[str, float]]
    gain_intervals: Mapping[str, Mapping[str, Interval]]

    def gain(self, domain: str, stack: str) -> float:
        """Nats by which `stack` lowers the loss of `domain`."""
        return self.base[domain] - self.nll[domain][stack]

    def show(self, console: Console) -> None:
        """A row per domain's prompts, a column per stack: nats gained over the base."""
        stacks = list(next(iter(self.nll.values()), {}))
        table = Table(title="What one stack alone gains over the base (nats per answer token)")
        table.add_column("prompts of")
        for name in ("base", *stacks):
            table.add_column(name, justify="right", overflow="fold")
        for domain in self.base:
            gains = [f"{self.gain(domain, stack):+.3f}" for stack in stacks]
            table.add_row(domain, f"{self.base[domain]:.3f}", *gains)
        console.print(table)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Transfer:
        """What `to_dict` wrote."""
        intervals = {
            domain: {stack: (low, high) for stack, (low, high) in row.items()}
            for domain, row in document["gain_intervals"].items()
        }
        return cls(document["base"], document["nll"], intervals)


def measure_transfer(stacked: StackedBase, examples: Mapping[str, Sequence[Example]]) -> Transfer:
    """Losses of each domain's `examples` under the base and under each stack alone."""
    stacks = tuple(stacked.digests)
    base: dict[str, float] = {}
    nll: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, Interval]] = {}
    with tracked(list(examples.items()), "measuring each stack alone", "domains") as domains:
        for seed, (domain, found) in enumerate(domains):
            tokens = [len(e.response) for e in found]
            columns = [stacked.losses(found, [weights] * len(found)) for weights in _alone(stacks)]
            means = [sum(column) / sum(tokens) for column in columns]
            resampled = resampled_nll(list(zip(*columns, strict=True)), tokens, seed)
            base[domain], nll[domain] = means[0], dict(zip(stacks, means[1:], strict=True))
            intervals[domain] = {
                stack: interval(resampled[:, 0] - resampled[:, i]) for i, stack in enumerate(stacks, 1)
            }
    return Transfer(base, nll, intervals)


def _alone(stacks: Sequence[str]) -> list[Weights]:
    """The base, then each stack."""
    return [{}, *({stack: 1.0} for stack in stacks)]


def _choices_dict(found: Choices) -> dict[str, Any]:
    return {
        "combinations": {name: _share_dict(share) for name, share in found.combinations.items()},
        "mean_weights": dict(found.mean_weights),
        "uses_others": _share_dict(found.uses_others),
        "without_own": _share_dict(found.without_own),
    }


def _share_dict(share: Share) -> dict[str, Any]:
    return {"count": share.count, "total": share.total, "value": share.value, "interval": share.interval}
