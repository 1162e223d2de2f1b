"""One seed of the contest: its records under every router's weights, every combination, and random twins."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from benchmarks.adapter_routers.contestants import (
    Contestant,
    by_signature,
    logo,
    nearest_prototype,
    ours,
    spectral,
)
from benchmarks.adapter_routers.kept_losses import KeptLosses
from benchmarks.adapter_routers.random_twins import served_stacks, with_random_twins
from benchmarks.adapter_routers.spectra import Spectral
from benchmarks.adapter_routers.varying import Thirds, Varying, by_thirds
from brainstacks.errors import ConfigError
from brainstacks.routing.router import Router
from brainstacks.stacks.registry import Registry
from training.data.domains import DomainData
from training.data.encoding import Example, examples_of
from training.data.records import Record
from training.router.outcomes import combinations
from training.router.stacked_base import StackedBase, Weights

BASE, UNIFORM, UNGATED, OWN, SINGLE, ORACLE = (
    "base", "uniform, 1/n each", "ungated, 1 each", "own domain's label", "best single", "oracle",
)  # fmt: skip
OURS, SIGNATURE, PROTOTYPE, ARROW, SPECTR, LOGO_NORM, LOGO_ENTROPY = ROUTERS = (
    "ours", "ours, by signature", "nearest prototype", "Arrow", "SpectR", "LoGo, norms", "LoGo, entropies",
)  # fmt: skip
UNIT, TOKEN, BY_THIRDS = ", 0/1", ", per token", ", by thirds of the layers"
TOP = 3
"""k of Arrow (PEFT's), SpectR and LoGo."""

LEVELS = (0.5, 1.5)
"""Factors that each third of the layers is tried at, besides 1."""


@dataclass(frozen=True)
class Sizes:
    """Records of each domain and seed, at most.

    Attributes:
        limit: validation records that everything is measured on.
        prompts: training prompts that make the prototypes.
        choosing: records that no stack trains on, which choose a single stack and factors of the layers.
    """

    limit: int
    prompts: int
    choosing: int


@dataclass(frozen=True)
class Round:
    """What one seed found; lists are of the records, in the order of `examples`.

    Attributes:
        domains: of each record.
        nats: contestant -> NLL, summed over the answer.
        random: the same under random twins, at the very weights; ORACLE is their own.
        beliefs: router -> what it told of each stack.
        best: the combination that is best for each record.
        chosen: what training records chose.
    """

    domains: Sequence[str]
    examples: Sequence[Example]
    nats: Mapping[str, Sequence[float]]
    random: Mapping[str, Sequence[float]]
    beliefs: Mapping[str, Sequence[Weights]]
    best: Sequence[tuple[str, ...]]
    chosen: Mapping[str, Any]


class Contest:
    """What all seeds share.

    Args:
        data: of the domains of `stacked`, in its order.
        seeds: validation records are dealt to them in turn, so none is measured for two.
    """

    def __init__(
        self,
        stacked: StackedBase,
        router: Router,
        registry: Registry,
        data: Mapping[str, DomainData],
        kept: KeptLosses,
        sizes: Sizes,
        seeds: Sequence[int],
        max_tokens: int,
    ) -> None:
        self._stacked = stacked
        self._router = router
        self._registry = registry
        self._data = data
        self._kept = kept
        self._sizes = sizes
        self._seeds = seeds
        self._max_tokens = max_tokens
        stacks, device = list(served_stacks(registry).values()), stacked.base.device
        self._rules = {
            ARROW: Spectral.arrow(stacks, TOP, device),
            SPECTR: Spectral.spectr(stacks, TOP, device),
        }

    def routers(self, seed: int) -> dict[str, Contestant]:
        """Every router by name; prototypes are of this seed's training prompts, signatures the stacks' own.

        A registry without signatures has no contestant of these.
        """
        prompts = self._drawn({d: data.train for d, data in self._data.items()}, self._sizes.prompts, seed)
        stacked, signatures = self._stacked, by_signature(self._stacked)
        return {
            OURS: ours(stacked, self._router),
            **({SIGNATURE: signatures} if signatures is not None else {}),
            PROTOTYPE: nearest_prototype(stacked, self._router.config, prompts),
            **{name: spectral(stacked, rule) for name, rule in self._rules.items()},
            LOGO_NORM: logo(stacked, TOP, entropy=False),
            LOGO_ENTROPY: logo(stacked, TOP, entropy=True),
        }

    def validation(self, seed: int) -> dict[str, list[Example]]:
        """Domain -> this seed's validation records."""
        first, every = self._seeds.index(seed), len(self._seeds)
        return self._encoded(
            {d: data.validation[first::every] for d, data in self._data.items()}, self._sizes.limit
        )

    def round(self, seed: int, routers: Mapping[str, Contestant]) -> Round:
        """Measure the records of `seed`."""
        records = _pairs(self.validation(seed))
        domains, examples = [d for d, _ in records], [e for _, e in records]
        unseen = {d: [*data.router, *data.selection] for d, data in self._data.items()}
        choosing = _pairs(self._drawn(unseen, self._sizes.choosing, seed))
        single, thirds = self._best_single(choosing), self._best_thirds(choosing, routers[OURS])
        beliefs = {name: router.believe([e.prompt for e in examples]) for name, router in routers.items()}
        applied = {**self._simple(domains, single), **_applied(routers, beliefs)}
        nats, best = self._measured(self._stacked, examples, applied)
        twins = with_random_twins(self._stacked, self._registry, seed)
        random_nats, _ = self._measured(twins, examples, applied)
        nats |= {name + TOKEN: self._per_token(examples, name) for name in self._rules}
        nats[OURS + BY_THIRDS] = self._under_thirds(examples, applied[OURS], thirds)
        chosen = {SINGLE: single, OURS + BY_THIRDS: thirds}
        return Round(domains, examples, nats, random_nats, beliefs, best, chosen)

    def _simple(self, domains: Sequence[str], single: str) -> dict[str, Sequence[Weights]]:
        """What needs no router, for records of these `domains`."""
        names, count = tuple(self._stacked.digests), len(domains)
        return {
            BASE: [{}] * count,
            UNIFORM: [dict.fromkeys(names, 1 / len(names))] * count,
            UNGATED: [dict.fromkeys(names, 1.0)] * count,
            SINGLE: [{single: 1.0}] * count,
            OWN: [{d: 1.0} for d in domains],
        }

    def _measured(
        self, stacked: StackedBase, examples: Sequence[Example], applied: Mapping[str, Sequence[Weights]]
    ) -> tuple[dict[str, list[float]], list[tuple[str, ...]]]:
        """(contestant, and ORACLE -> NLL of each record; the best combination for each)."""
        subsets = combinations(tuple(stacked.digests))
        every = [dict.fromkeys(subset, 1.0) for subset in subsets]
        rows = [
            (example, weights)  # those of one example stand together, and share its prompt
            for i, example in enumerate(examples)
            for weights in (*every, *(of_all[i] for of_all in applied.values()))
        ]
        found, width = self._kept.under(stacked, *zip(*rows, strict=True)), len(subsets) + len(applied)
        tables = [found[start : start + len(subsets)] for start in range(0, len(found), width)]
        nats = {name: found[len(subsets) + n :: width] for n, name in enumerate(applied)}
        nats[ORACLE] = [min(table) for table in tables]
        return nats, [subsets[table.index(min(table))] for table in tables]

    def _per_token(self, examples: Sequence[Example], name: str) -> list[float]:
        """NLL of each record where every token and projection is routed for itself."""
        rule = self._rules[name]
        return self._kept.varied(
            self._stacked,
            examples,
            [[name, rule.top]] * len(examples),
            lambda rows: Varying.of(self._stacked, len(rows), rule),
        )

    def _best_single(self, choosing: Sequence[tuple[str, Example]]) -> str:
        examples = [e for _, e in choosing]
        means = {
            name: mean_nll(choosing, self._kept.under(self._stacked, examples, [{name: 1.0}] * len(examples)))
            for name in self._stacked.digests
        }
        return min(means, key=means.__getitem__)

    def _best_thirds(self, choosing: Sequence[tuple[str, Example]], router: Contestant) -> Thirds:
        """Third after third, the factor that is best where the others stay."""
        examples = [e for _, e in choosing]
        weights = rounded(router.apply(router.believe([e.prompt for e in examples])))
        factors: Thirds = (1.0, 1.0, 1.0)
        for third in range(3):
            tried = [factors, *(_changed(factors, third, level) for level in LEVELS)]
            factors = min(tried, key=lambda f: mean_nll(choosing, self._under_thirds(examples, weights, f)))
        return factors

    def _under_thirds(
        self, examples: Sequence[Example], weights: Sequence[Weights], factors: Thirds
    ) -> list[float]:
        forms = [["thirds", sorted(row.items()), factors] for row in weights]
        return self._kept.varied(
            self._stacked,
            examples,
            forms,
            lambda rows: by_thirds(self._stacked, [weights[i] for i in rows], factors),
        )

    def _drawn(
        self, records: Mapping[str, Sequence[Record]], count: int, seed: int
    ) -> dict[str, list[Example]]:
        """Domain -> so many of its records, drawn by `seed`."""
        draw = random.Random(seed)
        return self._encoded({d: draw.sample(found, len(found)) for d, found in records.items()}, count)

    def _encoded(self, records: Mapping[str, Sequence[Record]], count: int) -> dict[str, list[Example]]:
        """Raises ConfigError: none of a domain fits."""
        found = {
            d: list(islice(examples_of(each, self._stacked.tokenizer, self._max_tokens), count))
            for d, each in records.items()
        }
        if empty := [d for d, examples in found.items() if not examples]:
            raise ConfigError(
                f"no record of {', '.join(empty)} that is left for a seed fits {self._max_tokens} tokens; "
                "give more data, or fewer seeds"
            )
        return found


def _applied(
    routers: Mapping[str, Contestant], beliefs: Mapping[str, Sequence[Weights]]
) -> dict[str, Sequence[Weights]]:
    """What each router applies, and the same stacks at 1."""
    found: dict[str, Sequence[Weights]] = {}
    for name, router in routers.items():
        found[name] = rounded(router.apply(beliefs[name]))
        found[name + UNIT] = units(found[name], router.unit)
    return found


def units(weights: Sequence[Weights], above: float) -> list[Weights]:
    """1 for every stack with a weight above that."""
    return [{d: 1.0 for d, w in row.items() if w > above} for row in weights]


def rounded(weights: Sequence[Weights]) -> list[Weights]:
    """To four digits, by which a kept loss is found again."""
    return [{d: round(w, 4) for d, w in row.items()} for row in weights]


def mean_nll(records: Sequence[tuple[str, Example]], nats: Sequence[float]) -> float:
    """The plain mean over domains of each domain's NLL per token."""
    sums: dict[str, tuple[float, int]] = {}
    for (domain, example), value in zip(records, nats, strict=True):
        total, tokens = sums.get(domain, (0.0, 0))
        sums[domain] = (total + value, tokens + len(example.response))
    return sum(total / tokens for total, tokens in sums.values()) / len(sums)


def _pairs(examples: Mapping[str, Sequence[Example]]) -> list[tuple[str, Example]]:
    """(domain, record) of all."""
    return [(domain, example) for domain, found in examples.items() for example in found]


def _changed(factors: Thirds, third: int, level: float) -> Thirds:
    lower, middle, upper = (level if i == third else factor for i, factor in enumerate(factors))
    return (lower, middle, upper)
