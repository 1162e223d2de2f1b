"""Prompts that several domains share, word for word or nearly, and what becomes of them.

Two prompts are near-duplicates when the shorter's 8-word shingles are in the longer to 80% or more. Such
pairs are looked for between domains alone.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from training.data.records import Record, prompt_key, question_words
from training.data.splits import Pool
from training.recipe.settings import Contamination

SHINGLE = 8
"""Words of a shingle; a shorter prompt has none, and only its exact repeats are found."""
CONTAINMENT = 0.8
EXAMPLES = 3
"""Shared prompts that an overlap shows."""


@dataclass(frozen=True)
class Overlap:
    """What two domains share.

    Attributes:
        exact: prompts that both have (count, normalised).
        near: further prompts of `second` that nearly repeat one of `first` (count).
        examples: a few of them, normalised.
    """

    first: str
    second: str
    exact: int
    near: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Shared:
    """What is shared among several domains.

    Attributes:
        overlaps: of every two domains that share something.
        groups: normalised prompt -> number of the group that it belongs to, for prompts of several domains:
            equal prompts, their near-duplicates, the near-duplicates of those.
    """

    overlaps: tuple[Overlap, ...]
    groups: Mapping[str, int]


def shared_prompts(domains: Mapping[str, Sequence[Record]]) -> Shared:
    """Find what `domains` (in the curriculum's order) share."""
    owners: dict[str, set[str]] = defaultdict(set)
    words: dict[str, list[str]] = {}
    for domain, records in domains.items():
        for record in records:
            key = prompt_key(record)
            owners[key].add(domain)
            words.setdefault(key, question_words(record))
    near = sorted(_near_pairs(words, owners))
    overlaps = (_overlap(a, b, owners, near) for a, b in combinations(domains, 2))
    exact = ((key, key) for key, names in owners.items() if len(names) > 1)
    return Shared(tuple(o for o in overlaps if o.exact or o.near), _components([*exact, *near]))


def resolve(pools: Mapping[str, Pool], shared: Shared, action: Contamination) -> dict[str, Pool]:
    """Leave each group of shared prompts to one domain, unless `action` is only to report them.

    `drop` leaves it to the first domain of those that have it, without the others' records. `reassign`
    leaves it to the one with most records of it (the first of equals), and adds the others' training
    records there under the id `<domain>/<id>`, unless its validation records are of the same group.
    """
    if action == "report":
        return dict(pools)
    owner = _owners(pools, shared.groups, most=action == "reassign")
    kept = {name: _keep(name, pool, shared.groups, owner) for name, pool in pools.items()}
    if action == "reassign":
        held = {
            name: {_group(r, shared.groups) for r in pool.validation or ()} for name, pool in kept.items()
        }
        for name, pool in pools.items():
            for record in pool.records:
                group = _group(record, shared.groups)
                if group is not None and owner[group] != name and group not in held[owner[group]]:
                    kept[owner[group]].records.append(replace(record, id=f"{name}/{record.id}"))
    return kept


# --- near-duplicates -----------------------------------------------------------------------------


def _near_pairs(
    words: Mapping[str, Sequence[str]], owners: Mapping[str, set[str]]
) -> Iterator[tuple[str, str]]:
    """Pairs (shorter, longer) of near-duplicate prompts of different domains.

    A longer prompt that holds `need` of n shingles holds at least one of any n - need + 1 of them: the
    rarest are looked up, so that text common to a whole data set costs nothing.
    """
    shingles = {key: _shingles(of) for key, of in words.items()}
    holders: dict[int, list[str]] = defaultdict(list)
    for key, held in shingles.items():
        for shingle in held:
            holders[shingle].append(key)
    for key, mine in shingles.items():
        need = math.ceil(CONTAINMENT * len(mine) - 1e-9)
        rarest = sorted(mine, key=lambda shingle: len(holders[shingle]))[: len(mine) - need + 1]
        for other in {holder for shingle in rarest for holder in holders[shingle]}:
            if other != key and len(owners[key] | owners[other]) > 1:
                theirs = shingles[other]
                if len(theirs) >= len(mine) and len(mine & theirs) >= need:
                    yield key, other


def _shingles(words: Sequence[str]) -> frozenset[int]:
    return frozenset(hash(tuple(words[i : i + SHINGLE])) for i in range(len(words) - SHINGLE + 1))


def _components(pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Key -> number of its connected component under `pairs`."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for a, b in pairs:
        parent[root(a)] = root(b)
    numbers = {key: number for number, key in enumerate(dict.fromkeys(map(root, list(parent))))}
    return {key: numbers[root(key)] for key in parent}


# --- domains -------------------------------------------------------------------------------------


def _overlap(
    first: str, second: str, owners: Mapping[str, set[str]], near: Sequence[tuple[str, str]]
) -> Overlap:
    exact = [key for key, names in owners.items() if {first, second} <= names]
    similar = {
        b
        for pair in near
        for a, b in (pair, pair[::-1])
        if first in owners[a] and second in owners[b] and first not in owners[b]
    }
    return Overlap(first, second, len(exact), len(similar), tuple([*exact, *sorted(similar)][:EXAMPLES]))


def _group(record: Record, groups: Mapping[str, int]) -> int | None:
    return groups.get(prompt_key(record))


def _owners(pools: Mapping[str, Pool], groups: Mapping[str, int], most: bool) -> dict[int, str]:
    """Group -> the domain that keeps it: the first that has it, or the one with `most` records of it."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for name, pool in pools.items():
        for record in pool.all:
            group = _group(record, groups)
            if group is not None:
                counts[group][name] += 1
    # Domains are counted in order, and max gives the first of equals.
    return {
        g: max(count, key=count.__getitem__) if most else next(iter(count)) for g, count in counts.items()
    }


def _keep(name: str, pool: Pool, groups: Mapping[str, int], owner: Mapping[int, str]) -> Pool:
    def kept(records: Sequence[Record]) -> list[Record]:
        return [r for r in records if owner.get(groups.get(prompt_key(r), -1), name) == name]

    return Pool(kept(pool.records), None if pool.validation is None else kept(pool.validation))
