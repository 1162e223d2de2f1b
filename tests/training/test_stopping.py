"""`brainstacks-train` as a process: stopped, started twice, or out of room, it says so and goes on."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from brainstacks.stacks.registry import Registry
from tests.tiny import write_records
from tests.training.launching import wait_for_a_step

pytestmark = pytest.mark.slow

SECONDS = 300


class Runs:
    """Runs of one recipe, each in a directory of its own."""

    def __init__(self, directory: Path, base: Path) -> None:
        self.directory = directory
        rows = [(f"question {i}", "12345678") for i in range(30)]
        write_records(directory / "data" / "math" / "train.jsonl", rows[:24])
        write_records(directory / "data" / "math" / "validation.jsonl", rows[24:])
        recipe = {
            "base": str(base),
            "quantization": "none",
            "data": {"max_tokens": 64, "selection": 6, "forgetting": 4},
            "stack": {"rank": 2, "alpha": 4.0, "experts": 2, "top_k": 1, "dtype": "float32"},
            "round": {
                "steps": 60, "batch_size": 4, "learning_rate": 2e-3, "eval_every": 10, "checkpoint_every": 5,
                "spike": 9.0, "patience": 99,
            },
            "domains": [{"name": "math", "licence": "CC0"}],
        }  # fmt: skip
        (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        self.started: list[subprocess.Popen[str]] = []

    def start(self, name: str, most_bytes: int | None = None) -> subprocess.Popen[str]:
        arguments: list[str | Path] = [
            "--recipe", self.directory / "recipe.yaml", "--data", self.directory / "data",
            "--run", self.directory / name, "--registry", self.directory / f"{name}-registry",
        ]  # fmt: skip

        def limit() -> None:
            if most_bytes is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

        process = subprocess.Popen(
            [sys.executable, "-m", "training", "curriculum", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limit,
        )
        self.started.append(process)
        return process

    def finish(self, name: str) -> str:
        """The digest of the stack that a run publishes when it is left alone."""
        _, said = self.start(name).communicate(timeout=SECONDS)
        assert self.started[-1].returncode == 0, said
        return Registry(self.directory / f"{name}-registry").snapshot().domain("math").current.digest


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path) -> Iterator[Runs]:
    found = Runs(tmp_path_factory.mktemp("stopping"), tiny_directory)
    yield found
    for process in found.started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def undisturbed(runs: Runs) -> str:
    """The digest of a run that nobody stops."""
    return runs.finish("undisturbed")


def test_sigterm_saves_a_checkpoint_and_the_same_command_goes_on_to_the_same_bytes(
    runs: Runs, undisturbed: str
) -> None:
    process = runs.start("stopped")
    wait_for_a_step(process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 75
    assert "of math, round 1; what was done is kept: give the same command and --run again" in said
    assert Registry(runs.directory / "stopped-registry").snapshot().domains == {}
    assert runs.finish("stopped") == undisturbed


def test_a_second_start_of_a_run_on_its_way_is_refused_by_process(runs: Runs) -> None:
    first = runs.start("run")
    wait_for_a_step(first)
    first.send_signal(signal.SIGSTOP)  # it keeps the run, and does not end before the other has begun
    second = runs.start("run")
    _, said = second.communicate(timeout=SECONDS)
    assert second.returncode == 1
    assert f"is being worked on by process {first.pid}" in said


def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(runs: Runs, undisturbed: str) -> None:
    process = runs.start("full", most_bytes=60_000)  # the first checkpoint is larger
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 75, said
    assert "no room" in said
    assert runs.finish("full") == undisturbed
