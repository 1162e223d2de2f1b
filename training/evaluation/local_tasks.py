"""Downstream tasks as lm-eval takes them, over documents that are at hand: nothing is fetched.

A task's documents are the first that there is of: `<task>.jsonl`, its data set's own test split, a JSON
object a line; its package; the validation records of its domain, `<domain>/validation.jsonl`.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brainstacks.errors import ConfigError

Document = dict[str, str]
Passes = Callable[[str, str], bool]
"""(code, tests) -> whether the tests pass after the code, neither of which is trusted."""

PASSES = "pass@1"
"""The metric of a task whose answers are code."""


@dataclass(frozen=True, eq=False)
class LocalTask:
    """Attributes:
    domain: whose stack is the task's own.
    metric: lm-eval's name of the figure, a share of the documents.
    config: for lm-eval; without what loads the documents.
    columns: that a row of the task's own file has.
    of_row: such a row -> the document; None: its answer is of another form.
    of_record: prompt and response of a record -> the document; None: the record is none. None where records
        never are.
    metric_options: of the figure, for lm-eval.
    package: (package, gzipped JSONL in it, what pip is to install), where one has the data.
    """

    name: str
    domain: str
    metric: str
    config: Mapping[str, Any]
    columns: tuple[str, ...]
    of_row: Callable[[Mapping[str, Any]], Document | None]
    of_record: Callable[[str, str], Document | None] | None = None
    metric_options: Mapping[str, Any] = field(default_factory=dict)
    package: tuple[str, str, str] | None = None

    @property
    def runs_code(self) -> bool:
        return self.metric == PASSES


@dataclass(frozen=True)
class Documents:
    """Attributes:
    source: where they are from, in words.
    """

    source: str
    rows: tuple[Document, ...] = field(repr=False)

    def first(self, count: int | None) -> Documents:
        return Documents(self.source, self.rows[:count])


def documents_of(task: LocalTask, data: Path) -> Documents | None:
    """Those of `task`; None where there are none.

    Raises:
        ConfigError: a file is there, and has no document of the task, or a line that is none; names it.
    """
    own = data / f"{task.name}.jsonl"
    if own.is_file():
        rows = tuple(_of_rows(task, own.name, own.read_bytes()))
        if not rows:
            raise ConfigError(f"{own.name} has no document; fill it, or remove it")
        return Documents(own.name, rows)
    if task.package is not None:
        package, path, _ = task.package
        spec = importlib.util.find_spec(package)
        locations = spec.submodule_search_locations if spec else None
        if locations:
            lines = gzip.decompress((Path(next(iter(locations))) / path).read_bytes())
            return Documents(f"the package {package.replace('_', '-')}", tuple(_of_rows(task, path, lines)))
    records = data / task.domain / "validation.jsonl"
    if task.of_record is None or not records.is_file():
        return None
    where = f"{task.domain}/{records.name}"
    found = (
        task.of_record(row["prompt"], row["response"])
        for row in _rows(where, ("prompt", "response"), records.read_bytes())
    )
    rows = tuple(document for document in found if document is not None)
    return Documents(f"validation records of {task.domain}", rows) if rows else None


def wanted(task: LocalTask) -> str:
    """What `documents_of` needs to find some, in words."""
    own = f"{task.name}.jsonl with {', '.join(task.columns)} in each line"
    return f"`pip install {task.package[2]}`, or {own}" if task.package else own


def harness_task(task: LocalTask, documents: Documents, passes: Passes) -> dict[str, Any]:
    """The task's configuration for lm-eval, over `documents`.

    Args:
        passes: what runs answers that are code, as `training.reinforce.sandbox.Sandbox` does.
    """
    metric = {"metric": task.metric, "aggregation": "mean", "higher_is_better": True, **task.metric_options}
    found = {
        **task.config,
        "task": task.name,
        "test_split": "test",
        "num_fewshot": 0,
        "custom_dataset": lambda **_: _dataset(documents.rows),
        "metric_list": [metric],
    }
    if task.runs_code:
        found["process_results"] = lambda document, answers: {
            PASSES: float(passes(document["begun"] + answers[0], document["tests"]))
        }
    return found


def _dataset(rows: Iterable[Document]) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({"test": Dataset.from_list([dict(row) for row in rows])})


def _of_rows(task: LocalTask, name: str, lines: bytes) -> Iterator[Document]:
    for number, row in enumerate(_rows(name, task.columns, lines), 1):
        try:
            document = task.of_row(row)
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise ConfigError(f"{name}, document {number}: no document of {task.name} ({error!r})") from error
        if document is None or not all(isinstance(value, str) for value in document.values()):
            raise ConfigError(f"{name}, document {number}: it has not the form of {task.name}'s")
        yield document


def _rows(name: str, columns: tuple[str, ...], lines: bytes) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{name}, line {number}: no JSON ({error})") from error
        missing = [c for c in columns if not isinstance(row, dict) or c not in row]
        if missing:
            raise ConfigError(
                f"{name}, line {number}: no {', '.join(missing)}; a line is a JSON object with it"
            )
        yield row
