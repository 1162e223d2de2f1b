"""Results: ratios round by round, aligned tables, and a machine that is described but not named."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from benchmarks.results import Spread, machine, markdown_table, percentile, write_results


def test_ratios_are_taken_round_by_round() -> None:
    assert Spread.ratio([1.0, 0.25, 1.0], [0.5, 0.025, 1 / 9]) == Spread(9.0, 2.0, 10.0, (2.0, 10.0, 9.0))


@pytest.mark.parametrize(("percent", "expected"), [(50, 5), (99, 10), (90, 9), (91, 10), (100, 10), (1, 1)])
def test_percentile_is_the_least_value_that_covers_the_share(percent: float, expected: float) -> None:
    assert percentile([3, 1, 2, 10, 9, 4, 5, 8, 7, 6], percent) == expected


def test_tables_align() -> None:
    lines = markdown_table(["a", "long header"], [["wide cell", 1.5], ["x", "y"]]).splitlines()
    assert lines[1] == "| --------- | ----------- |"
    assert len({len(line) for line in lines}) == 1


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
