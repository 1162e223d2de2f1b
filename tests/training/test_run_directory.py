"""`training.run_directory`: one process at a time, always the same run, and no torn file."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from brainstacks.errors import ConfigError, StorageFull
from training.run_directory import RunDirectory, atomic_write, differences

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
    with RunDirectory(tmp_path / "runs" / "demo", IDENTITY) as run:
        return run.path


# --- one process at a time -----------------------------------------------------------------------


def test_a_second_start_is_refused_and_names_the_process_that_holds_the_run(run: Path) -> None:
    with (
        RunDirectory(run, IDENTITY),
        pytest.raises(ConfigError, match=rf"'demo' is being worked on by process {os.getpid()};.*--run"),
        RunDirectory(run, IDENTITY),
    ):
        pass
    with RunDirectory(run, IDENTITY):
        assert (run / "lock").read_text() == str(os.getpid())


def test_a_refused_start_holds_no_lock(run: Path) -> None:
    for _ in range(2):
        with pytest.raises(ConfigError, match="other settings"), RunDirectory(run, changed("base", "c" * 64)):
            pass
    with RunDirectory(run, IDENTITY):
        pass


HOLDER = """
import json, os, signal, sys
from pathlib import Path
from training.run_directory import RunDirectory

with RunDirectory(Path(sys.argv[1]), json.loads(sys.argv[2])):
    print(os.getpid(), flush=True)
    signal.pause()
"""


def test_the_lock_of_a_killed_process_is_free_at_once(run: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(run), json.dumps(IDENTITY)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{process.pid}\n"
        with (
            pytest.raises(ConfigError, match=f"by process {process.pid};"),
            RunDirectory(run, IDENTITY),
        ):
            pass
        process.send_signal(signal.SIGKILL)
    with RunDirectory(run, IDENTITY):
        pass


# --- always the same run -------------------------------------------------------------------------


def test_the_same_identity_goes_on_and_run_json_stays_as_it_was(run: Path) -> None:
    before = (run / "run.json").read_bytes()
    with RunDirectory(run, IDENTITY):
        pass
    assert (run / "run.json").read_bytes() == before
    assert json.loads(before) == json.loads(json.dumps(IDENTITY))


def test_another_identity_is_refused_with_what_differs_and_the_way_out(run: Path) -> None:
    other = changed("recipe.round.learning_rate", 0.0001)
    other["data"]["math"]["train"] = "c" * 64
    other["recipe"]["null_space"] = {"side": "output"}
    with pytest.raises(ConfigError) as refused, RunDirectory(run, other):
        pass
    head, *lines = refused.value.message.split("\n")
    assert "'demo'" in head
    assert "give another --run, remove it, or undo" in head
    assert sorted(line.strip() for line in lines) == [
        "data.math.train: sha256 bbbbbbbbbbbb.. -> cccccccccccc..",
        'recipe.null_space.side: absent -> "output"',
        "recipe.null_space: null -> absent",
        "recipe.round.learning_rate: 0.0002 -> 0.0001",
    ]


def test_other_tools_only_warn(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RunDirectory(run, changed("tools.torch", "2.14.0")):
        pass
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
    with pytest.raises(ConfigError, match=r"holds thesis\.tex and no run\.json"), RunDirectory(tmp_path, {}):
        pass


def test_a_start_that_was_killed_before_run_json_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("1")
    (tmp_path / ".run.json.tmp-1").write_text("{")
    with RunDirectory(tmp_path, IDENTITY):
        assert sorted(os.listdir(tmp_path)) == ["lock", "run.json"]


# --- where things are ----------------------------------------------------------------------------


def test_every_artefact_has_its_place(run: Path) -> None:
    directory = RunDirectory(run, IDENTITY)
    places = [
        directory.domain("math"),
        directory.checkpoints("math"),
        directory.round("math", 2),
        directory.stack("math"),
        directory.metrics,
        directory.forgetting,
        directory.outcomes,
        directory.router,
        directory.evaluation,
        directory.report,
    ]
    assert [place.relative_to(run).as_posix() for place in places] == [
        "math",
        "math/checkpoints",
        "math/round-2",
        "math/stack.safetensors",
        "metrics.jsonl",
        "forgetting.json",
        "outcomes.jsonl",
        "router.safetensors",
        "evaluation.json",
        "report.html",
    ]


@pytest.mark.parametrize("name", ["lock", "tensorboard", "run.json"])
def test_a_domain_named_as_a_part_of_the_run_is_refused(run: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="another name"):
        RunDirectory(run, IDENTITY).stack(name)


# --- no torn file --------------------------------------------------------------------------------


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for text in ("old", "näw\n"):
        atomic_write(tmp_path / "results.json", text)
        assert (tmp_path / "results.json").read_text(encoding="utf-8") == text
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize("function", ["open", "write", "fsync", "replace"])
def test_no_room_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    atomic_write(tmp_path / "results.json", "old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, full)
        with pytest.raises(StorageFull, match=r"results\.json"):
            atomic_write(tmp_path / "results.json", "new")
    assert os.listdir(tmp_path) == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "old"
