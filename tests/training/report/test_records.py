"""What is read of a run: as far as it is, nothing of another base, and damage by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from brainstacks.base_identity import BaseIdentity
from brainstacks.errors import ConfigError
from brainstacks.layers.projections import find_sites, projection_dims
from brainstacks.stacks.registry import Registry
from tests.tiny import publish_stack, random_stack, tiny_model
from training.report.records import RunRecords
from training.runs.paths import EXPERT_USE, RunPaths

DIMS = projection_dims(find_sites(tiny_model()))
BASE = BaseIdentity("tiny", "f" * 64, "llama", 2, DIMS, 32)
IDENTITY = {"base": BASE.fingerprint, "recipe": {"domains": [{"name": "math"}, {"name": "chat"}]}}


@pytest.fixture
def records(tmp_path: Path, registry: Registry) -> RunRecords:
    """Of a run that has begun."""
    write(tmp_path / "run" / "run.json", IDENTITY)
    return RunRecords(RunPaths(tmp_path / "run"), registry)


def write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document) + "\n")


def test_what_does_not_exist_yet_is_nothing(records: RunRecords) -> None:
    assert (records.forgetting, records.expert_use, records.evaluation) == (None, None, None)
    assert (records.logged, records.rounds, records.stacks) == ({}, {}, {})


def test_a_directory_without_a_run_is_refused(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        _ = RunRecords(RunPaths(tmp_path), registry).identity


def test_the_log_is_sorted_by_domain_and_round_up_to_its_last_whole_line(records: RunRecords) -> None:
    lines: list[dict[str, Any]] = [
        {"kind": "step", "domain": "math", "round": 0, "step": 1},
        {"kind": "step", "domain": "math", "round": 1, "step": 1},
        {"kind": "step", "domain": "chat", "round": 0, "step": 1},
        {"kind": "step", "domain": "chat", "round": 0, "step": 2},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "st'
    records.run.metrics.write_text(text)
    assert records.logged == {"math": [[lines[0]], [lines[1]]], "chat": [[lines[2], lines[3]]]}


def test_rounds_are_those_without_a_hole_in_the_order_of_the_recipe(records: RunRecords) -> None:
    for domain, number in (("chat", 0), ("math", 0), ("math", 1), ("math", 3)):
        write(records.run.round(domain, number) / "state.json", {"best": number})
    assert list(records.rounds.items()) == [("math", [{"best": 0}, {"best": 1}]), ("chat", [{"best": 0}])]


def test_stacks_of_another_base_are_left_out(records: RunRecords, tmp_path: Path) -> None:
    stack = random_stack(DIMS, 1, rounds=2)
    publish_stack(records.registry, BASE, "chat", stack, tmp_path)
    other = dataclasses.replace(BASE, fingerprint="0" * 64)
    publish_stack(records.registry, other, "stranger", stack, tmp_path)
    ((domain, (metadata, tensors)),) = records.stacks.items()
    assert (domain, metadata.domain, metadata.rounds, tensors.rounds) == ("chat", "chat", 2, 2)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("run.json", "identity"),
        ("metrics.jsonl", "logged"),
        ("math/round-0/state.json", "rounds"),
        ("forgetting.json", "forgetting"),
        ("evaluation.json", "evaluation"),
        (EXPERT_USE, "expert_use"),
    ],
)
def test_a_damaged_file_is_named(records: RunRecords, name: str, part: str) -> None:
    path = records.run.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n")
    with pytest.raises(ConfigError, match=path.name):
        getattr(records, part)
