"""Several processes, as torchrun starts them, train and measure what one does."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack
from tests.training.curricula import digests, write_data
from tests.training.launching import SECONDS, Launches, wait_for_a_step

pytestmark = pytest.mark.slow

Trained = tuple[Path, Registry]


@pytest.fixture(scope="module")
def launches(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launches]:
    """Steps of three forwards: of two processes one takes two of them. Noise and dropout are on."""
    directory = tmp_path_factory.mktemp("processes")
    data = write_data(directory / "data")
    found = Launches(directory, tiny_directory, data, steps=8, accumulation=3, eval_every=4)
    yield found
    found.end()


@pytest.fixture(scope="module")
def one(launches: Launches) -> Trained:
    return launches.train(1, "one")


@pytest.fixture(scope="module")
def two(launches: Launches) -> Trained:
    return launches.train(2, "two")


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    every = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in every if line["kind"] == kind]


def test_two_processes_have_the_loss_curve_of_one_and_its_stacks(one: Trained, two: Trained) -> None:
    """They draw the same and weight rows alike; but three forwards' gradients are added in another order,
    which rounds them otherwise (1e-7), and where a gradient is almost 0 Adam makes a rate's step of that."""
    for kind, value in (("baseline", "nll"), ("step", "loss"), ("evaluation", "nll")):
        expected, found = lines(one[0], kind), lines(two[0], kind)
        assert [(x["domain"], x["step"]) for x in found] == [(x["domain"], x["step"]) for x in expected]
        assert [x[value] for x in found] == pytest.approx([x[value] for x in expected], abs=1e-4)
    assert len(lines(two[0], "step")) == 2 * 8
    losses = [line["loss"] for line in lines(one[0], "step")]
    assert losses[7] < losses[0] - 0.1, "the curve that is compared goes down"
    for domain in ("chat", "math"):
        expected_stack, found_stack = (
            load_stack(r.blob_path(r.snapshot().domain(domain).current.digest)).tensors
            for r in (one[1], two[1])
        )
        for name, tensor in expected_stack.items():
            torch.testing.assert_close(found_stack[name], tensor, atol=1e-4, rtol=1e-2, msg=name)


def test_who_trained_is_no_part_of_the_run_s_identity(one: Trained, two: Trained) -> None:
    found = [json.loads((run / "run.json").read_text(encoding="utf-8")) for run, _ in (one, two)]
    assert found[0] == found[1]


def test_outcomes_and_evaluation_of_two_processes_are_those_of_one_to_the_bit(
    launches: Launches, one: Trained
) -> None:
    """The two go on where one was killed, amid a line: they measure a group of eight each."""
    run, registry = one
    found, left = dict[int, dict[str, str]](), ""
    for count in (1, 2):
        there, served = (launches.directory / f"measured-{count}{part}" for part in ("", "-registry"))
        shutil.copytree(run, there)
        shutil.copytree(launches.directory / "one-registry", served)
        (there / "outcomes.jsonl").write_text(left, encoding="utf-8")
        launches.finish(count, "router", there, served)
        launches.finish(count, "evaluate", there, served, "--oracle-limit", "4")
        found[count] = {
            name: (there / name).read_text(encoding="utf-8")
            for name in ("outcomes.jsonl", "evaluation.json", "expert_use.json")
        }
        lines = found[count]["outcomes.jsonl"].splitlines(keepends=True)
        assert len(lines) == 1 + 2 * (8 + 4)
        left = "".join(lines[: 1 + 8]) + lines[9][:20]
        assert Registry(served).snapshot().router is not None
        assert digests(Registry(served)) == digests(registry)
    assert found[2] == found[1]


def test_a_killed_run_goes_on_with_as_many_processes_or_with_one_to_the_same_bytes(
    tiny_directory: Path, tmp_path: Path
) -> None:
    """With a forward each, two processes add what one adds: the same bits."""
    data = write_data(tmp_path / "data")
    launches = Launches(
        tmp_path, tiny_directory, data, steps=40, accumulation=2, eval_every=10, checkpoint_every=3,
        patience=99, spike=9.0,
    )  # fmt: skip
    run, registry = tmp_path / "killed", tmp_path / "killed-registry"
    try:
        killed = launches.start(2, "curriculum", run, registry)
        wait_for_a_step(killed)
        os.kill(int((run / "lock").read_text(encoding="utf-8")), signal.SIGKILL)
        _, said = killed.communicate(timeout=SECONDS)
        assert killed.returncode != 0, "the launcher ends the other one"
        assert "another process of this command is gone" in said

        stopped = launches.start(2, "curriculum", run, registry)
        wait_for_a_step(stopped)
        stopped.send_signal(signal.SIGTERM)
        _, said = stopped.communicate(timeout=SECONDS)
        assert "what was done is kept: give the same command and --run again" in said
        assert list(run.glob("*/checkpoints/round-0/step-*"))
        assert Registry(registry).snapshot().domains == {}

        launches.finish(1, "curriculum", run, registry)
        assert digests(Registry(registry)) == digests(launches.train(1, "undisturbed")[1])
    finally:
        launches.end()
