"""Results: ratios round by round, aligned tables, and a machine that is described but not named."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.instruments import results
from benchmarks.instruments.results import (
    EXTENSIONS,
    Spread,
    machine,
    markdown_table,
    percentile,
    vector_extension,
    write_results,
)
from brainstacks.cpu import NOTED, Cpu


def test_ratios_are_taken_round_by_round() -> None:
    assert Spread.ratio([1.0, 0.25, 1.0], [0.5, 0.025, 1 / 9]) == Spread(9.0, 2.0, 10.0, (2.0, 10.0, 9.0))


@pytest.mark.parametrize(("percent", "expected"), [(50, 5), (99, 10), (90, 9), (91, 10), (100, 10), (1, 1)])
def test_percentile_is_the_least_value_that_covers_the_share(percent: float, expected: float) -> None:
    assert percentile([3, 1, 2, 10, 9, 4, 5, 8, 7, 6], percent) == expected


def test_tables_align() -> None:
    lines = markdown_table(["a", "long header"], [["wide cell", 1.5], ["x", "y"]]).splitlines()
    assert lines[1] == "| --------- | ----------- |"
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("features", "name"),
    [
        (("avx2", "fma", "avx512f", "avx512vnni", "avx512bf16", "amx-int8"), "amx"),
        (("avx2", "avx512f", "avx512bw", "avx512vnni"), "avx512vnni"),
        (("avx2", "fma", "f16c"), "avx2"),
        (("neon", "dotprod"), "dotprod"),
        ((), "generic"),
    ],
)
def test_a_kind_of_cpu_is_named_by_its_best_vector_extension(features: tuple[str, ...], name: str) -> None:
    assert vector_extension(features) == name


def test_every_noted_feature_of_a_kind_is_one_that_is_looked_for() -> None:
    assert set(EXTENSIONS) <= set(NOTED)


def test_two_kinds_of_cpu_do_not_share_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    kinds = set()
    for features in (("avx2",), ("avx2", "avx512f")):
        monkeypatch.setattr(results, "cpu", lambda features=features: Cpu("any", features, ""))
        kinds.add(machine()["kind"])
    assert kinds == {f"cpu-{os.cpu_count()}-avx2", f"cpu-{os.cpu_count()}-avx512"}


def test_the_backend_is_told_where_there_is_one(tmp_path: Path) -> None:
    facts = machine() | {"backend": "avx512 int8 blocks"}
    path = write_results("name", {"machine": facts}, "text", tmp_path, report=lambda line: None)
    assert json.loads(path.read_text())["machine"]["backend"] == "avx512 int8 blocks"
    assert "computed by avx512 int8 blocks\n" in path.with_suffix(".md").read_text()


def test_machine_is_described_without_naming_the_host(tmp_path: Path) -> None:
    document: dict[str, Any] = {"machine": machine(), "spread": Spread.of([1.0, 3.0, 2.0])}
    said: list[str] = []
    path = write_results("name", document, "| table |", tmp_path, report=said.append)
    assert path.name == f"name-{document['machine']['kind']}.json"
    written = json.loads(path.read_text())
    assert written["benchmark"] == "name"
    assert written["spread"] == {"median": 2.0, "min": 1.0, "max": 3.0, "rounds": [1.0, 3.0, 2.0]}
    assert set(document["machine"]) == {
        *("kind", "cpu", "cpu_features", "cores", "torch_threads", "load_1min", "gpu", "date", "versions")
    }
    assert {"python", "torch", "transformers"} <= set(document["machine"]["versions"])
    assert platform.node() not in map(str, document["machine"].values())
    for file in tmp_path.iterdir():
        assert str(tmp_path) not in file.read_text()
    assert "| table |" in path.with_suffix(".md").read_text()
    assert "| table |" in said[0]
