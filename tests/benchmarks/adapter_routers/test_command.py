"""The command measures every router, and goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.adapter_routers import contest
from benchmarks.adapter_routers.__main__ import PREFILL
from training.recipe.recipe import load_recipe

RECIPE = """\
base: tiny
data: {max_tokens: 64, selection: 4, router: 4}
domains: [{name: chat}, {name: math}]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    assert load_recipe(str(path)).data.router == 4
    return path


def test_every_router_is_measured_once(run: Any, data: Path, recipe: Path, tmp_path: Path) -> None:
    asked = ["--data", str(data), "--recipe", str(recipe), "--run", str(tmp_path / "kept")]
    asked += ["--seeds", "0,1", "--limit", "2", "--prompts", "4", "--choosing", "2"]
    document, output = run("adapter_routers", *asked, registry=True)
    nll = {name: found["mean"]["value"] for name, found in document["validation_nll"].items()}
    routers = {name for name in contest.ROUTERS if name != contest.SIGNATURE}  # no stack has one
    assert {*routers, *(name + contest.UNIT for name in routers)} < set(nll)
    singles = {contest.BASE, contest.UNGATED, contest.OWN, contest.SINGLE}
    assert all(nll[contest.ORACLE] <= nll[name] for name in singles)
    assert set(document["route_cpu_ms"]) == {PREFILL, *routers}
    assert set(document["calibration"]) == routers
    assert "nan" not in output.lower()
    lines = (tmp_path / "kept" / "losses.jsonl").read_text().splitlines()
    again, _ = run("adapter_routers", *asked, "--registry", str(tmp_path / "trained"))
    assert again["validation_nll"] == document["validation_nll"]
    assert (tmp_path / "kept" / "losses.jsonl").read_text().splitlines() == lines
