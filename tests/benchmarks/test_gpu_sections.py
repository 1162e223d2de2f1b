"""What `benchmarks.gpu` does where there is no GPU: it loses nothing, and its own code runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import gpu
from benchmarks.gpu_sections import outline
from benchmarks.gpu_sections.correctness import agree, family_requests, identical
from benchmarks.gpu_sections.engines import Text
from benchmarks.gpu_sections.environment import environment
from benchmarks.gpu_sections.figures import packaged_figures
from benchmarks.gpu_sections.findings import Findings, Mismatch
from benchmarks.gpu_sections.hot_load import hot_load
from benchmarks.gpu_sections.outline import Document, Group, Section
from benchmarks.gpu_sections.report import text
from benchmarks.gpu_sections.setting import Setting
from benchmarks.gpu_sections.training_step import training_step
from benchmarks.instruments.results import Spread

pytestmark = pytest.mark.static_cuda

Run = Callable[[Setting, Findings], None]


def document_of(path: Path) -> Document:
    found: Document = json.loads(path.read_text())
    return found


# --- nothing is lost -----------------------------------------------------------------------------


def test_what_fails_is_recorded_and_the_section_goes_on(tmp_path: Path) -> None:
    found = Findings(tmp_path / "found.json", "some", 60)
    with found.attempt("to divide"):
        found.figure("before", 1)
        raise ZeroDivisionError("by nothing")
    with found.attempt("to agree"):
        raise Mismatch("1 is not 2")
    with found.attempt("to add") as told:
        told.append("it is 3")
    broken, differing, sound = document_of(tmp_path / "found.json")["attempts"]
    assert broken["error"] == "ZeroDivisionError: by nothing"
    assert "raise ZeroDivisionError" in broken["traceback"]
    assert (differing["passed"], "traceback" in differing) == (False, False)
    assert (sound["passed"], sound["told"]) == (True, "it is 3")
    assert document_of(tmp_path / "found.json")["figures"] == {"before": 1}


def test_all_that_was_found_is_on_disk_before_the_next_thing_is_tried(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    found = Findings(path, "some", 60)
    assert document_of(path)["state"] == "running"
    found.figure("speed", Spread.of([1.0, 3.0]))
    assert document_of(path)["figures"]["speed"]["median"] == 2.0
    found.table("Speeds", ["", ""], [["one", 1]])
    found.table("Speeds", ["", ""], [["one", 1], ["two", 2]])
    (table,) = document_of(path)["tables"]
    assert "two" in table["text"]


def test_nothing_is_begun_when_time_is_over_and_the_state_says_what_was_left_out(tmp_path: Path) -> None:
    def run(setting: Setting, found: Findings) -> None:
        with found.attempt("first"):
            now.append(61.0)
        with found.attempt("second"):
            raise AssertionError("there was no time for it")

    now = [0.0]
    found = Findings(tmp_path / "found.json", "some", 60, clock=lambda: now[-1])
    outline.measure(Section("some", "Some", run), Setting(tmp_path), found)
    document = document_of(tmp_path / "found.json")
    assert document["state"] == "out of time; left out from here on: second"
    assert [one["what"] for one in document["attempts"]] == ["first"]
    assert outline.passed(document)


def test_a_section_that_raises_has_failed_with_its_traceback(tmp_path: Path) -> None:
    def run(setting: Setting, found: Findings) -> None:
        raise RuntimeError("no such kernel")

    found = Findings(tmp_path / "found.json", "some", 60)
    outline.measure(Section("some", "Some", run), Setting(tmp_path), found)
    document = document_of(tmp_path / "found.json")
    assert document["state"].startswith("failed\nTraceback")
    assert not outline.passed(document)
    said = text([Section("some", "Some", run), Section("later", "Later", run)], {"some": document}, "a note")
    assert "no such kernel" in said
    assert "not begun" in said


def hangs(setting: Setting, found: Findings) -> None:
    found.figure("before", 1)
    time.sleep(600)


def crashes(setting: Setting, found: Findings) -> None:
    found.figure("before", 2)
    os._exit(77)


def works(setting: Setting, found: Findings) -> None:
    found.figure("all", 3)


@pytest.mark.slow
def test_a_process_that_hangs_or_crashes_takes_no_other_with_it(tmp_path: Path) -> None:
    groups = [
        Group(1, (Section("hangs", "", hangs), Section("crashes", "", crashes))),
        Group(5, (Section("works", "", works),)),
    ]
    told: list[set[str]] = []
    found = outline.run(groups, Setting(tmp_path), 0.3, lambda now: told.append(set(now)))
    assert found["hangs"]["figures"] == {"before": 1}
    assert "in hangs" in found["hangs"]["state"], "where it was"
    assert found["crashes"]["figures"] == {"before": 2}
    assert "its process ended with 77" in found["crashes"]["state"]
    assert (found["works"]["state"], found["works"]["figures"]) == ("done", {"all": 3})
    assert [outline.passed(found[name]) for name in ("hangs", "crashes", "works")] == [False, False, True]
    assert told[0] < told[-1] == {"hangs", "crashes", "works"}


def test_without_a_gpu_the_command_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(gpu.app, ["--output", str(tmp_path)])
    assert result.exit_code == 2
    assert "no CUDA device is available" in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


# --- texts that agree ----------------------------------------------------------------------------

CPU = Text((5, 6, 7), (-0.5, -0.25, -0.125), (1.0, 1e-4, 2.0))


def test_texts_may_part_at_a_tie_and_nowhere_else() -> None:
    parted = Text((5, 9, 1), (-0.5, -3.0, -3.0), CPU.leads)
    assert agree([parted], [CPU]) == "within 0.0e+00 nats; 1 rows parted at a tie"
    with pytest.raises(Mismatch, match="row 0 parts at token 0, 4 for 5, which led by 1 nats"):
        agree([Text((4, 6, 7), CPU.logprobs, CPU.leads)], [CPU])


def test_texts_that_agree_have_close_log_probabilities() -> None:
    with pytest.raises(Mismatch, match=r"differ by 0\.25 nats"):
        agree([Text(CPU.ids, (-0.5, -0.5, -0.125), CPU.leads)], [CPU])


def test_one_bit_is_enough_to_be_no_longer_identical() -> None:
    assert identical([CPU], [CPU]) == "3 tokens"
    with pytest.raises(Mismatch, match="row 0 differs from token 1 on"):
        identical([Text(CPU.ids, (-0.5, -0.25000000000000006, -0.125), CPU.leads)], [CPU])


# --- a rehearsal ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, for CUDA tensors")
@pytest.mark.parametrize(
    ("run", "attempts"),
    [(environment, 2), (family_requests, 7), (hot_load, 2), (packaged_figures, 4), (training_step, 9)],
)
def test_sections_run_from_end_to_end_on_the_cpu(tmp_path: Path, run: Run, attempts: int) -> None:
    found = Findings(tmp_path / "found.json", "some", 600)
    outline.measure(Section("some", "Some", run), Setting(tmp_path, rehearse=True), found)
    document = document_of(tmp_path / "found.json")
    assert document["state"] == "done", document["state"]
    assert [one["what"] for one in document["attempts"] if not one["passed"]] == []
    assert len(document["attempts"]) == attempts
    assert document["tables"] or run is family_requests
    assert str(tmp_path) not in json.dumps(document)
