"""What stages learn from: preference pairs, and prompts whose answers a reward can verify."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import DataSource
from brainstacks.tokenizer import ChatTokenizer
from training.data.domains import DomainData
from training.data.encoding import Example, encode
from training.data.formats import FORMATS, Reader, Row, Turn
from training.data.records import Record
from training.data.sources import load_file
from training.data.splits import Pool, split
from training.recipe.recipe import DomainRecipe, Recipe
from training.recipe.reinforcement import GrpoRecipe, StageRecipe
from training.reinforce.rewards import REWARDS

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt.

    Attributes:
        example: the prompt with the answer that is preferred.
        rejected: the same prompt with the other one.
    """

    example: Example
    rejected: Example


@dataclass(frozen=True)
class Question:
    """A prompt whose answers can be verified.

    Attributes:
        example: the prompt, with what the reward asks for in place of a response.
        expected: the same as text.
    """

    example: Example
    expected: str


@dataclass(frozen=True)
class StageRecords:
    """Records of one stage; of a reward, each has what it asks for as its response.

    Attributes:
        train, held_out: to learn from, and to choose the snapshot by.
        sources: the files that they are from; none where they are the domain's own.
    """

    train: list[Record]
    held_out: list[Record]
    sources: tuple[DataSource, ...] = ()


def load_stages(
    recipe: Recipe, records: Mapping[str, DomainData], domains: Sequence[DomainRecipe], processes: int = 1
) -> dict[str, list[StageRecords]]:
    """Domain -> records of each of its stages, in order.

    Of a file, records are left out that share their first question with one that a domain of `records` holds
    out: for validation, selection or the router.

    Args:
        processes: that train.

    Raises:
        ConfigError: several processes train; a reward cannot be told here; a file cannot be read, or has a
            row of another form; there is nothing to learn from, or to choose a snapshot by.
    """
    staged = [domain.name for domain in domains if domain.rl]
    if staged and processes > 1:
        raise ConfigError(
            f"{processes} processes train, and a stage of `rl:`, which {', '.join(staged)} has, takes one; "
            "start one"
        )
    held_out = [r for data in records.values() for r in (*data.validation, *data.selection, *data.router)]
    return {
        domain.name: [
            _load(f"{domain.name}, {stage.method} {n}", recipe, stage, records[domain.name], held_out)
            for n, stage in enumerate(domain.rl, 1)
        ]
        for domain in domains
        if domain.rl
    }


def stages_identity(stages: Mapping[str, Sequence[StageRecords]]) -> dict[str, list[list[list[str | None]]]]:
    """Domain -> name and digest of the files of each of its stages, as JSON values."""
    return {
        domain: [[[source.name, source.digest] for source in stage.sources] for stage in of_domain]
        for domain, of_domain in stages.items()
    }


def _load(
    where: str, recipe: Recipe, stage: StageRecipe, data: DomainData, held_out: list[Record]
) -> StageRecords:
    if isinstance(stage, GrpoRecipe):
        REWARDS[stage.reward].check()
    if stage.data is None:
        found = StageRecords(_own(stage, data.train), _own(stage, data.selection))
    else:
        loaded = load_file(Path(stage.data), _reader(stage))
        settings = dataclasses.replace(recipe.data, selection=stage.held_out, router=0)
        splits = split(where, Pool(loaded.records, held_out), settings)
        found = StageRecords(splits.train, splits.selection, loaded.sources)
    for what, some in (("to learn from", found.train), ("to choose a snapshot by", found.held_out)):
        if not some:
            raise ConfigError(f"{where}: there is nothing {what}; {_wanted(stage)}")
    count = len(found.held_out)
    if stage.min_gain * count < 1:
        _log.warning(
            "%s: min_gain is %g, and one of the %d items held out is %.3f: a single one that turns out well "
            "has the stage frozen; hold out more, or raise min_gain",
            *(where, stage.min_gain, count, 1 / count),
        )
    return dataclasses.replace(found, train=_numbered(found.train), held_out=_numbered(found.held_out))


def _reader(stage: StageRecipe) -> Reader:
    """What reads the rows of a stage's file."""
    reward = REWARDS[stage.reward] if isinstance(stage, GrpoRecipe) else None

    def turns(row: Row) -> list[Turn]:
        for name in ("chosen", "rejected") if reward is None else ("prompt", reward.column):
            if name not in row:
                raise ConfigError(f"no {name!r}; it has {', '.join(map(str, row))}; {_wanted(stage)}")
        if reward is None:
            return FORMATS["preference"](row)
        asked = {"prompt": row["prompt"], "completion": reward.given(row[reward.column])}
        return FORMATS["prompt_completion"](asked)

    return turns


def _own(stage: StageRecipe, records: Sequence[Record]) -> list[Record]:
    """Those of the domain's own `records` that a stage can use."""
    if not isinstance(stage, GrpoRecipe):
        return [record for record in records if record.rejected]
    pairs = [(record, REWARDS[stage.reward].expected(record)) for record in records]
    return [dataclasses.replace(record, response=expected) for record, expected in pairs if expected]


def _wanted(stage: StageRecipe) -> str:
    if isinstance(stage, GrpoRecipe):
        reward = REWARDS[stage.reward]
        return f"give `data:` a JSONL file with prompt and {reward.column}, or the domain {reward.own}"
    return "give `data:` a JSONL file with prompt, chosen and rejected, or the domain records in that format"


def _numbered(records: Sequence[Record]) -> list[Record]:
    """`records` with ids that no two of them share."""
    return [dataclasses.replace(record, id=f"{n}/{record.id}") for n, record in enumerate(records)]


def pairs_of(records: Sequence[Record], tokenizer: ChatTokenizer, max_tokens: int) -> list[Pair]:
    """Those of `records` of which both answers fit; longer ones are cut, as in training."""
    chosen = {e.id: e for e in encode(records, tokenizer, max_tokens)}
    others = [dataclasses.replace(record, response=record.rejected or "") for record in records]
    rejected = {e.id: e for e in encode(others, tokenizer, max_tokens)}
    return [Pair(chosen[id], rejected[id]) for id in chosen if id in rejected]


def questions_of(records: Sequence[Record], tokenizer: ChatTokenizer, max_tokens: int) -> list[Question]:
    """Those of `records` whose prompt leaves room for an answer."""
    expected = {record.id: record.response for record in records}
    return [Question(e, expected[e.id]) for e in encode(records, tokenizer, max_tokens)]
