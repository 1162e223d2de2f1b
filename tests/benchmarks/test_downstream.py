"""Downstream tasks are measured by mode, kept, and quoted by the card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("lm_eval")

from benchmarks import downstream
from brainstacks.errors import ConfigError
from brainstacks.stacks.registry import Registry
from tests.tiny import save_base, write_records
from training.evaluation.downstream import Downstream
from training.evaluation.harness import document_scores
from training.evaluation.known_tasks import TASKS
from training.reinforce.sandbox import Sandbox
from training.report.card import card

QUESTIONS = [("1 + 1?", "#### 2"), ("2 + 2?", "#### 4"), ("3 + 3?", "#### 6")]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    write_records(tmp_path / "tasks" / "math" / "validation.jsonl", QUESTIONS)
    facts = [(f"Is it {i}?", f"It is {i}. So the answer is {'yes' if i else 'no'}.") for i in range(4)]
    write_records(tmp_path / "tasks" / "reasoning" / "validation.jsonl", facts)
    return tmp_path / "tasks"


def test_every_task_is_measured_in_the_modes_that_it_has_and_the_card_quotes_it(
    run: Any, tasks: Path, tmp_path: Path
) -> None:
    asked = ["--tasks", "gsm8k,strategyqa,pubmedqa", "--documents", "2", "--run", str(tmp_path / "kept")]
    document, output = run("downstream", "--data", str(tasks), *asked, registry=True)
    gsm8k, strategyqa = document["tasks"]
    assert set(gsm8k["scores"]) == {"base", "ungated", "routed", "own"}
    assert set(strategyqa["scores"]) == {"base", "ungated", "routed"}, "there is no stack of reasoning"
    assert all(len(scores) == 2 for task in document["tasks"] for scores in task["scores"].values())
    assert strategyqa["constant"] == 0.5
    assert set(document["left_out"]) == {"pubmedqa"}
    assert "validation records of reasoning" in output
    licences = {"chat": "CC0", "math": "CC0"}
    found = card(Registry(tmp_path / "trained"), None, licences, Downstream.from_dict(document))
    assert "| strategyqa (acc), n = 2 |" in found
    assert "- gsm8k: validation records of math" in found


def test_what_is_kept_is_not_measured_again_and_other_documents_or_settings_are(
    run: Any, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data", str(tasks), "--tasks", "strategyqa", "--run", str(tmp_path / "kept")]
    measured: list[int] = []
    score = document_scores

    def counting(*given: Any) -> list[float]:
        measured.append(1)
        return score(*given)

    monkeypatch.setattr(downstream, "document_scores", counting)
    (only,) = run("downstream", *arguments, "--modes", "base", registry=True)[0]["tasks"]
    arguments += ["--registry", str(tmp_path / "trained")]
    for _ in range(2):
        document, output = run("downstream", *arguments, "--modes", "base,ungated")
        assert document["tasks"][0]["scores"]["base"] == only["scores"]["base"]
    assert len(measured) == 2, "the base once, ungated once"
    assert "2 of 2 are kept" in output
    write_records(tasks / "reasoning" / "validation.jsonl", [("Is it?", "So the answer is no.")])
    run("downstream", *arguments, "--modes", "base")
    assert len(measured) == 3
    task = TASKS["strategyqa"]
    other = replace(task, config={**task.config, "gen_prefix": "The answer is"})
    monkeypatch.setitem(TASKS, "strategyqa", other)
    run("downstream", *arguments, "--modes", "base")
    assert len(measured) == 4


def test_without_any_document_it_says_what_it_needs(tmp_path: Path) -> None:
    result = CliRunner().invoke(downstream.app, ["--data", str(tmp_path), "--tasks", "pubmedqa"])
    assert result.exit_code == 1
    assert "pubmedqa.jsonl with QUESTION, CONTEXTS, final_decision" in result.output


def test_a_base_without_a_chat_template_is_told_the_option(tasks: Path, tmp_path: Path) -> None:
    base = save_base(tmp_path / "plain")
    (base / "chat_template.jinja").unlink()
    arguments = ["--data", str(tasks), "--tasks", "strategyqa", "--run", str(tmp_path / "kept")]
    result = CliRunner().invoke(
        downstream.app, [*arguments, "--base", str(base), "--quantization", "none", "--device", "cpu"]
    )
    assert result.exit_code == 1
    assert "the base 'plain' has no chat template to ask in; give --no-chat" in result.output
    assert not (tmp_path / "kept").exists()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "gsm8k.jsonl").write_text(json.dumps({"question": "q"}))
    with pytest.raises(ConfigError, match=r"gsm8k\.jsonl, line 1"):
        downstream._at_hand(["gsm8k"], tmp_path, None, Sandbox())


def test_code_is_run_where_there_is_a_sandbox_and_left_out_with_its_reason_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(tmp_path / "math" / "validation.jsonl", QUESTIONS)
    prompt = "Add.\nYour code should pass this test:\nassert add(1, 2) == 3"
    write_records(tmp_path / "code" / "validation.jsonl", [(prompt, "x")])
    for problem in (None, "no namespaces"):
        monkeypatch.setattr(Sandbox, "problem", lambda self, said=problem: said)
        found, left_out = downstream._at_hand(["gsm8k", "mbpp"], tmp_path, None, Sandbox())
        assert [task.name for task in found] == ["gsm8k", *([] if problem else ["mbpp"])]
        assert left_out == ({"mbpp": problem} if problem else {})
