"""The command and its picture."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from benchmarks.scaling import __main__ as command
from benchmarks.scaling import study
from benchmarks.scaling.routers import ROUTERS


def test_the_command_writes_figures_with_intervals_a_comparison_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "HALVINGS", 2)
    image = tmp_path / "fleets.svg"
    arguments = ["--replicas", "1,3", "--domains", "5,9", "--room", "4", "--seeds", "2", "--least", "20"]
    arguments += ["--requests", "5", "--output", str(tmp_path), "--picture", str(image)]
    result = CliRunner().invoke(command.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (found,) = tmp_path.glob("scaling-*.json")
    document, text = json.loads(found.read_text()), found.with_suffix(".md").read_text()
    cells = {(one["domains"], one["replicas"], one["router"]): one for one in document["cells"]}
    assert set(cells) == {(d, n, r) for d in (5, 9) for n in (1, 3) for r in command.GRID_ROUTERS}
    alone = [cells[5, 1, router] for router in command.GRID_ROUTERS]
    assert all(
        one["hit_rate"] == alone[0]["hit_rate"] for one in alone
    )  # of one replica each router is equal
    assert {name for each in document["most_load"].values() for name in each} == set(ROUTERS)
    assert all(file in text for file in document["profile"]["files"].values())
    assert "Simulated against measured" in text
    root = ElementTree.parse(image).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    drawn = image.read_text()
    assert "prefers-color-scheme: dark" in drawn
    assert all(router in drawn for router in command.GRID_ROUTERS)
