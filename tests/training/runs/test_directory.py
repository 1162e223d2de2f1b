"""`training.runs.directory`: one process at a time, always the same run, nothing left of a dead one."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from brainstacks.errors import ConfigError
from training.runs.directory import RunDirectory, differences

IDENTITY: dict[str, Any] = {
    "recipe": {"round": {"learning_rate": 0.0002, "betas": (0.9, 0.95)}, "null_space": None},
    "base": "a" * 64,
    "data": {"math": {"train": "b" * 64}},
    "tools": {"torch": "2.13.0"},
}


def changed(path: str, value: object) -> dict[str, Any]:
    """A copy of IDENTITY with another value at a dotted path."""
    identity: dict[str, Any] = json.loads(json.dumps(IDENTITY))
    *parents, last = path.split(".")
    place = identity
    for key in parents:
        place = place[key]
    place[last] = value
    return identity


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a run that was started and has ended."""
    path = tmp_path / "runs" / "demo"
    start(path, IDENTITY)
    return path


def start(path: Path, identity: dict[str, Any]) -> None:
    with RunDirectory(path) as run:
        run.check_identity(identity)


# --- one process at a time -----------------------------------------------------------------------


def test_a_second_start_is_refused_and_names_the_process_that_holds_the_run(run: Path) -> None:
    with (
        RunDirectory(run),
        pytest.raises(ConfigError, match=rf"'demo' is being worked on by process {os.getpid()};.*--run"),
        RunDirectory(run),
    ):
        pass
    with RunDirectory(run):
        assert (run / "lock").read_text() == str(os.getpid())


def test_a_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(ConfigError, match="'file' is no directory, so no run"),
        RunDirectory(tmp_path / "file"),
    ):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_refused_start_holds_no_lock(run: Path) -> None:
    for _ in range(2):
        with pytest.raises(ConfigError, match="other settings"):
            start(run, changed("base", "c" * 64))
    start(run, IDENTITY)


HOLDER = """
import os, signal, sys
from pathlib import Path
from training.runs.directory import RunDirectory

with RunDirectory(Path(sys.argv[1])):
    print(os.getpid(), flush=True)
    signal.pause()
"""


def test_the_lock_of_a_killed_process_is_free_at_once(run: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(run)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{process.pid}\n"
        with (
            pytest.raises(ConfigError, match=f"by process {process.pid};"),
            RunDirectory(run),
        ):
            pass
        process.send_signal(signal.SIGKILL)
    with RunDirectory(run):
        pass


# --- always the same run -------------------------------------------------------------------------


def test_the_same_identity_goes_on_and_run_json_stays_as_it_was(run: Path) -> None:
    before = (run / "run.json").read_bytes()
    start(run, IDENTITY)
    assert (run / "run.json").read_bytes() == before
    assert json.loads(before) == json.loads(json.dumps(IDENTITY))


def test_another_identity_is_refused_with_what_differs_and_the_way_out(run: Path) -> None:
    other = changed("recipe.round.learning_rate", 0.0001)
    other["data"]["math"]["train"] = "c" * 64
    other["recipe"]["null_space"] = {"side": "output"}
    with pytest.raises(ConfigError) as refused:
        start(run, other)
    head, *lines = refused.value.message.split("\n")
    assert "'demo'" in head
    assert "give another --run, remove it, or undo" in head
    assert sorted(line.strip() for line in lines) == [
        "data.math.train: sha256 bbbbbbbbbbbb.. -> cccccccccccc..",
        'recipe.null_space.side: absent -> "output"',
        "recipe.null_space: null -> absent",
        "recipe.round.learning_rate: 0.0002 -> 0.0001",
    ]


def test_a_run_of_before_processes_decided_nothing_goes_on_if_it_was_of_one(tmp_path: Path) -> None:
    """Steps of several had as many rows more than they have now."""
    start(tmp_path / "one", IDENTITY | {"processes": 1})
    start(tmp_path / "one", IDENTITY)
    start(tmp_path / "two", IDENTITY | {"processes": 2})
    with pytest.raises(ConfigError, match="processes: 2 -> absent"):
        start(tmp_path / "two", IDENTITY)


def test_other_tools_only_warn(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    start(run, changed("tools.torch", "2.14.0"))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert 'torch: "2.13.0" -> "2.14.0"' in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 1}, {"b": 3}]}, ["a.1.b: 2 -> 3"]),
        ({"a": ["x", "y"]}, {"a": ["y", "x"]}, ['a.0: "x" -> "y"', 'a.1: "y" -> "x"']),
        ({"a": [1]}, {"a": [1, 2]}, ["a.1: absent -> 2"]),
        ({"a": {}}, {}, ["a: {} -> absent"]),
        ({"a": None}, {"a": "d" * 64}, [f'a: null -> "{"d" * 64}"']),
    ],
)
def test_differences_are_those_of_the_leaves(old: Any, new: Any, lines: list[str]) -> None:
    assert differences(old, new) == lines


def test_a_directory_that_holds_something_else_is_not_taken_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"holds thesis\.tex and no run\.json"):
        start(tmp_path, {})
    assert sorted(os.listdir(tmp_path)) == ["lock", "thesis.tex"]


@pytest.mark.parametrize("text", ["{", "3"])
def test_a_damaged_run_json_is_named(run: Path, text: str) -> None:
    (run / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json"):
        start(run, IDENTITY)


def test_a_start_that_was_killed_before_run_json_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("1")
    (tmp_path / f".run.json.tmp-{'0' * 32}").write_text("{")
    start(tmp_path, IDENTITY)
    assert sorted(os.listdir(tmp_path)) == ["lock", "run.json"]


def test_what_a_killed_start_left_of_a_stack_is_gone_and_what_others_keep_there_is_not(run: Path) -> None:
    (run / "math").mkdir()
    (run / "math" / f".stack.safetensors.tmp-{'0' * 32}").touch()
    (run / "math" / ".notes.tmp-1").touch()
    with RunDirectory(run):
        assert os.listdir(run / "math") == [".notes.tmp-1"]
