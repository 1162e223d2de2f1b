"""The records of every domain of a recipe: loaded, mixed, cleared of what domains share, split, checked."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import DataSource
from brainstacks.tokenizer import ChatTokenizer
from training.data.contamination import Overlap, resolve, shared_prompts
from training.data.encoding import examples_of
from training.data.records import Record
from training.data.sources import load_directory, load_source
from training.data.splits import Pool, mix, split
from training.progress import tracked, working
from training.recipe.recipe import DomainRecipe, Recipe
from training.recipe.settings import require

SPLITS = ("train", "selection", "validation")
"""Of a domain's data, those that its training reads."""


@dataclass(frozen=True)
class DomainData:
    """Records of one domain.

    Attributes:
        train: what its stacks learn from.
        selection: chooses snapshots, and never trains.
        validation: only reports.
        sources: where they come from: name, SHA-256 and count of records.
        left_out: records that its sources hold besides, by reason (count): `unusable`, for the prompt or
            response is empty or a tool takes part; the same record `repeated`; above its source's `share`;
            `contaminated`, so dropped or given to another domain; a training record whose prompt is
            `in validation`.
        received: records that other domains gave it (count).
        overlaps: what it shared with earlier domains, before anything was done about it.
        router: only for the router, of which no stack learns; none where `data.router` is 0.
    """

    name: str
    train: list[Record]
    selection: list[Record]
    validation: list[Record]
    sources: tuple[DataSource, ...]
    left_out: Mapping[str, int]
    received: int
    overlaps: tuple[Overlap, ...]
    router: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class _Loaded:
    pool: Pool
    sources: tuple[DataSource, ...]
    left_out: Mapping[str, int]


def prepare(
    recipe: Recipe, data: Path | None = None, domains: Sequence[DomainRecipe] | None = None
) -> dict[str, DomainData]:
    """Records of the domains of `recipe`, in its order; the same for the same recipe and data.

    Args:
        data: directory with `<domain>/train.jsonl` and, optionally, `<domain>/validation.jsonl`: a domain
            that has a directory there is read from it, and another from the recipe's sources.
        domains: whose records; None: everyone's.

    Raises:
        ConfigError: a domain has no source, a source cannot be read or is empty, or too few records are left
            to train on; `data` has nothing for any domain.
    """
    chosen = recipe.domains if domains is None else domains
    if data is not None:
        names = ", ".join(domain.name for domain in chosen)
        require(
            any(has_directory(domain, data) for domain in chosen),
            f"{str(data)!r} has a directory for none of the domains ({names}); give the one that holds "
            "<domain>/train.jsonl",
        )
    with tracked(chosen, "reading records", "domains") as each:
        loaded = {domain.name: _load(domain, data, recipe.data.seed) for domain in each}
    pools = {name: domain.pool for name, domain in loaded.items()}
    with working("looking for prompts that domains share"):
        shared = shared_prompts({name: pool.all for name, pool in pools.items()})
    resolved = resolve(pools, shared, recipe.data.contamination)
    prepared = {}
    for name, domain in loaded.items():
        own = {record.id for record in pools[name].all}
        kept = sum(record.id in own for record in resolved[name].all)
        require(
            bool(resolved[name].records),
            f"all {len(pools[name].records)} records of domain {name!r} have prompts of other domains, where "
            f"contamination: {recipe.data.contamination} leaves them; set it to report, or give other data",
        )
        splits = split(name, resolved[name], recipe.data)
        prepared[name] = DomainData(
            name,
            splits.train,
            splits.selection,
            splits.validation,
            domain.sources,
            {
                **domain.left_out,
                "contaminated": len(pools[name].all) - kept,
                "in validation": splits.left_out,
            },
            received=len(resolved[name].all) - kept,
            overlaps=tuple(o for o in shared.overlaps if o.second == name),
            router=splits.router,
        )
    return prepared


def has_directory(domain: DomainRecipe, data: Path | None) -> bool:
    """Whether `data`, as `prepare` takes it, holds the records of `domain`."""
    return data is not None and (data / domain.name).is_dir()


def check_data(recipe: Recipe, records: Mapping[str, DomainData], tokenizer: ChatTokenizer) -> None:
    """See that every domain can be trained, before the first is.

    Raises:
        ConfigError: a split of a domain has no record, or none that can be used.
    """
    for (domain, data), part in itertools.product(records.items(), SPLITS):
        found, tokens = getattr(data, part), recipe.data.max_tokens
        require(bool(found), f"domain {domain!r} has no {part} records; give it some")
        require(
            any(True for _ in examples_of(found, tokenizer, tokens)),
            f"none of the {len(found)} {part} records of {domain} fits {tokens} tokens and the base's chat "
            "template; give others, or raise data.max_tokens",
        )


def _load(domain: DomainRecipe, data: Path | None, seed: int) -> _Loaded:
    if data is not None and has_directory(domain, data):
        loaded = [(load_directory(data / domain.name), 1.0)]
    else:
        loaded = [(load_source(source), source.weight) for source in domain.sources]
    if not loaded:
        raise ConfigError(
            f"domain {domain.name!r} has no sources; list some under `sources:`, or give a data directory "
            f"that holds {domain.name}/train.jsonl"
        )
    sources = [source for source, _ in loaded]
    mixed = mix([(source.records, weight) for source, weight in loaded], seed)
    records = _unique(mixed)
    given = [source.validation for source in sources if source.validation is not None]
    require(
        len(given) in (0, len(sources)),
        f"of the {len(sources)} sources of domain {domain.name!r} {len(given)} have a validation split, so "
        "that its validation would be of these alone; name a validation_split for all of them, or for none",
    )
    validation = _unique([record for part in given for record in part]) if given else None
    left_out = {
        "unusable": sum(source.skipped for source in sources),
        "share": sum(len(source.records) for source in sources) - len(mixed),
        "repeated": len(mixed) - len(records) + sum(map(len, given)) - len(validation or ()),
    }
    return _Loaded(
        Pool(records, validation), tuple(s for source in sources for s in source.sources), left_out
    )


def _unique(records: Sequence[Record]) -> list[Record]:
    """`records` without repeats; an id that several of them have is completed by each one's content."""
    once = list(dict.fromkeys(records))
    ids = Counter(record.id for record in once)
    return [replace(r, id=f"{r.id}-{_content_digest(r)[:8]}") if ids[r.id] > 1 else r for r in once]


def _content_digest(record: Record) -> str:
    return hashlib.sha256(json.dumps(asdict(record)).encode()).hexdigest()
