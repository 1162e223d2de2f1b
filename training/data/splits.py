"""Which records train, choose snapshots, teach the router, only report: by prompt, never by file order.

Records come in the order of a hash of seed and first question. All records with the same are neighbours in
it, and stay together: what is set aside was never trained on under another answer, or as an earlier turn.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from brainstacks.errors import ConfigError
from training.data.records import Record, opening_key
from training.recipe.settings import DataRecipe

SHARE = 5
"""A part that is set aside has at most one record in so many: of few records, most are to be learnt."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pool:
    """Records of one domain before they are split.

    Attributes:
        records: to train on, and to set aside from.
        validation: what its sources hold for validation; None where some is yet to be set aside.
    """

    records: list[Record]
    validation: list[Record] | None

    @property
    def all(self) -> list[Record]:
        return [*self.records, *(self.validation or ())]


@dataclass(frozen=True)
class Splits:
    """Records of one domain.

    Attributes:
        train: what stacks learn from.
        selection: set aside from training to choose snapshots.
        router: set aside from training for the router alone.
        validation: only reports.
        left_out: training records that share their first question with a given validation record (count).
    """

    train: list[Record]
    selection: list[Record]
    router: list[Record]
    validation: list[Record]
    left_out: int


def split(domain: str, pool: Pool, settings: DataRecipe) -> Splits:
    """Set aside selection and router records and, where `pool` has no validation, validation records as well.

    Raises:
        ConfigError: too few prompts to leave one for training.
    """
    held_out = {opening_key(record) for record in pool.validation or ()}
    by_prompt = [g for g in _prompts(pool.records, settings.seed) if opening_key(g[0]) not in held_out]
    kept = sum(map(len, by_prompt))
    if not kept and pool.records:
        raise ConfigError(
            f"all {len(pool.records)} records of domain {domain!r} share their first question with records "
            "that are held out; give it others to train on"
        )
    asked = {"selection": settings.selection, "router": settings.router}
    if pool.validation is None:
        asked = {"validation": settings.validation, **asked}
    most, aside = max(1, kept // SHARE), dict[str, list[Record]]()
    for name, count in asked.items():
        aside[name], by_prompt = _set_aside(by_prompt, min(count, most))
    counts = ", ".join(f"{len(records)} for {name}" for name, records in aside.items() if records)
    if not by_prompt:
        raise ConfigError(
            f"the {kept} records of domain {domain!r} leave none to train on, after {counts}; add records, "
            "or lower these under `data:`"
        )
    train = [record for group in by_prompt for record in group]
    fewer = ", ".join(f"{name}: {count}" for name, count in asked.items() if count > most)
    if fewer:
        _log.warning(
            "%s: of %d records no part takes more than a fifth (`data:` has %s): %d to train on, %s",
            *(domain, kept, fewer, len(train), counts),
        )
    validation = (
        ordered(pool.validation, settings.seed) if pool.validation is not None else aside["validation"]
    )
    return Splits(train, aside["selection"], aside["router"], validation, len(pool.records) - kept)


def mix(sources: Sequence[tuple[Sequence[Record], float]], seed: int) -> list[Record]:
    """As many of the sources' records as their weights allow, each source's share by its weight.

    The source that runs out first decides; the others give the first of their records in hash order, and
    none is repeated.

    Args:
        sources: (records, weight) of each.
    """
    total = min(len(records) / weight for records, weight in sources)
    return [
        record
        for records, weight in sources
        for record in ordered(records, seed)[: max(1, round(total * weight))]
    ]


def ordered(records: Sequence[Record], seed: int) -> list[Record]:
    """`records` in the order of a hash of seed and first question."""
    return [record for group in _prompts(records, seed) for record in group]


def _prompts(records: Sequence[Record], seed: int) -> list[list[Record]]:
    """Records by first question, in the order of the questions' hashes; those of one by their text."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(opening_key(record), []).append(record)
    places = {key: hashlib.sha256(f"{seed}/{key}".encode()).digest() for key in groups}
    return [
        sorted(groups[key], key=lambda record: (record.response, record.id))
        for key in sorted(groups, key=places.__getitem__)
    ]


def _set_aside(groups: list[list[Record]], count: int) -> tuple[list[Record], list[list[Record]]]:
    """Whole groups of at least `count` records together, and the other groups."""
    taken: list[Record] = []
    for i, group in enumerate(groups):
        if len(taken) >= count:
            return taken, groups[i:]
        taken += group
    return taken, []
