"""Where records come from: the hub, local files, generators. The same source gives the same records."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainstacks.durable import storage_full
from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import DataSource
from training.data.formats import Reader, format_of, read, records_of
from training.data.records import Record
from training.recipe.recipe import SourceRecipe


@dataclass(frozen=True)
class SourceRecords:
    """What one source holds.

    Attributes:
        records: in the source's own order.
        validation: records of its validation split; None where it has none.
        skipped: records left out because their prompt or response is empty, and rows in which a tool takes
            part (count).
        sources: name, SHA-256 and count of what was read: the records, then the validation split.
    """

    records: list[Record]
    validation: list[Record] | None
    skipped: int
    sources: tuple[DataSource, ...]


@dataclass(frozen=True)
class _Rows:
    """Rows of one split, as they come, and no more than are asked for.

    Attributes:
        digest: SHA-256 of the rows; of the whole file, where it is one.
        rows: by their number in the source, from 1.
        own_ids: a column `id` is unique in the data set, not only in the split.
    """

    name: str
    digest: str
    rows: Mapping[int, Mapping[str, Any]]
    own_ids: bool = False


def load_source(source: SourceRecipe) -> SourceRecords:
    """Records of `source`, from the first `limit` rows that its `where` selects.

    Raises:
        ConfigError: it cannot be read, has no column that `where` or `columns` names, or a row is not in its
            format; names the row.
    """
    kind, _, name = source.source.partition(":")
    if kind == "jsonl":
        return _read(source, _file(source, Path(name)))
    if kind == "reasoning_gym":
        return _read(source, _generated(source, name))
    train = _hub_split(source, name, source.split or "train", source.limit)
    if source.validation_split is None:
        return _read(source, train)
    return _read(source, train, _hub_split(source, name, source.validation_split, None))


def load_directory(directory: Path) -> SourceRecords:
    """Records of `train.jsonl` and, where there is one, `validation.jsonl`, in the format that the first row
    of each has (`formats.format_of`).

    Raises:
        ConfigError: there is no `train.jsonl`, or a line is no row of that format; names the line.
    """
    train, validation = directory / "train.jsonl", directory / "validation.jsonl"
    source = SourceRecipe(f"jsonl:{train}", format=None)
    return _read(source, _file(source, train), _file(source, validation) if validation.is_file() else None)


def load_file(path: Path, reader: Reader) -> SourceRecords:
    """Records of a JSONL file, of whose rows `reader` makes turns.

    Raises:
        ConfigError: it cannot be read, or `reader` refuses a row; names the row.
    """
    source = SourceRecipe(f"jsonl:{path}")
    return _read(source, _file(source, path), reader=reader)


def _read(
    source: SourceRecipe, train: _Rows, validation: _Rows | None = None, reader: Reader | None = None
) -> SourceRecords:
    _check_columns(source, train)
    records, skipped = _usable(_records(source, train, reader))
    if not records:
        selected = f" among the rows where {dict(source.where)}" if source.where else ""
        raise ConfigError(f"{train.name} has no record with a prompt and a response{selected}")
    origin = DataSource(train.name, train.digest, len(records))
    if validation is None:
        return SourceRecords(records, None, skipped, (origin,))
    held_out, also_skipped = _usable(_records(source, validation))
    reported = DataSource(validation.name, validation.digest, len(held_out))
    return SourceRecords(records, held_out, skipped + also_skipped, (origin, reported))


def _check_columns(source: SourceRecipe, rows: _Rows) -> None:
    """Some rows may lack an optional column; one that all of them lack is misspelt in the recipe."""
    known = dict.fromkeys(str(column) for row in rows.rows.values() for column in row)
    for column in source.columns.values():
        if known and column not in known:
            raise ConfigError(
                f"{rows.name} has no column {column!r}, which `columns:` names; it has {', '.join(known)}"
            )


def _records(source: SourceRecipe, rows: _Rows, reader: Reader | None = None) -> Iterator[Record]:
    """Of rows as `reader` takes them, or in the source's format; where it has none, in the first row's."""
    format = source.format or format_of(next(iter(rows.rows.values()), {}))
    for number, row in rows.rows.items():
        # Named by its content, a record keeps its id wherever the row stands.
        id = row["id"] if rows.own_ids and "id" in row else f"{Path(rows.name).stem}-{_digest([row])[:12]}"
        try:
            if reader is not None:
                yield from records_of(reader, row, str(id))
            else:
                yield from read(format, row, str(id), source.columns)
        except ConfigError as error:
            raise ConfigError(f"{rows.name}, row {number}: {error.message}") from error


def _usable(records: Iterable[Record]) -> tuple[list[Record], int]:
    """Records that ask and answer something, and how many others there were."""
    every = list(records)
    kept = [record for record in every if _asks(record) and record.response.strip()]
    return kept, len(every) - len(kept)


def _asks(record: Record) -> bool:
    last = record.messages[-1] if record.messages else None
    return last is not None and last.role == "user" and bool(last.content.strip())


# --- kinds of sources ----------------------------------------------------------------------------


def _file(source: SourceRecipe, path: Path) -> _Rows:
    name = f"{path.parent.name}/{path.name}" if path.parent.name else path.name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"no data file {path} ({error.strerror}); give a JSONL file, one object a line"
        ) from error
    if content.lstrip()[:1] == b"[":
        raise ConfigError(f"{name} is a JSON array; write one object a line, as `jq -c '.[]'` does")
    lines = ((n, line) for n, line in enumerate(content.splitlines(), 1) if line.strip())
    rows = _selected(
        ((n, _object(line, f"{name}, row {n}")) for n, line in lines), source.where, source.limit, name
    )
    return _Rows(name, hashlib.sha256(content).hexdigest(), rows, own_ids=True)


def _object(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
        if b"\\ud" in line.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half of a character is none
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
        raise ConfigError(f"{where}: no JSON object; {error}") from error
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: a {type(value).__name__}; it is a JSON object")
    return value


def _hub_split(source: SourceRecipe, name: str, split: str, limit: int | None) -> _Rows:
    datasets = _package("datasets")
    pinned = name if source.revision is None else f"{name}@{source.revision}"
    label = "/".join(part for part in (pinned, source.subset, split) if part)
    # A stream ends with the last row that is wanted, before the rest is downloaded; a slice cannot be one.
    streaming = limit is not None and "[" not in split
    try:
        with storage_full(label):
            found = datasets.load_dataset(
                name, source.subset, split=split, revision=source.revision, streaming=streaming
            )
            rows = _selected(enumerate(found, 1), source.where, limit, label)
    except (OSError, ValueError) as error:  # no such data set, subset or split; no connection
        raise ConfigError(f"{label} cannot be loaded from the hub: {error}") from error
    return _Rows(label, _digest(rows.values()), rows)


def _generated(source: SourceRecipe, name: str) -> _Rows:
    """Questions and answers of a reasoning-gym generator; its seed is 0 where `options` gives none."""
    reasoning_gym = _package("reasoning_gym")
    try:
        items = reasoning_gym.create_dataset(name, **{"seed": 0, **source.options})
    except (AssertionError, TypeError, ValueError) as error:  # no such generator, or no such option
        raise ConfigError(f"reasoning_gym:{name} with options {dict(source.options)}: {error}") from error
    label = f"reasoning_gym/{name}"
    chosen = _selected(enumerate(items, 1), source.where, source.limit, label)
    rows = {n: {"prompt": item["question"], "response": item["answer"]} for n, item in chosen.items()}
    return _Rows(label, _digest(rows.values()), rows)


def _selected(
    rows: Iterable[tuple[int, Mapping[str, Any]]], where: Mapping[str, Any], limit: int | None, name: str
) -> dict[int, Mapping[str, Any]]:
    """The first `limit` numbered rows with these values, by their number; no row after them is asked for."""
    chosen = ((number, row) for number, row in rows if _has(row, where, name))
    return dict(itertools.islice(chosen, limit))


def _has(row: Mapping[str, Any], where: Mapping[str, Any], name: str) -> bool:
    for column in where:
        if column not in row:
            raise ConfigError(
                f"{name} has no column {column!r} to select rows by; it has {', '.join(map(str, row))}"
            )
    return all(row[column] == value for column, value in where.items())


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"this source needs the package {name}; pip install 'brainstacks[training]'"
        ) from error


def _digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of the rows' content, the same for the same rows on any machine."""
    hasher = hashlib.sha256()
    for row in rows:
        hasher.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return hasher.hexdigest()
