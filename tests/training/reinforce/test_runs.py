"""A curriculum with stages: they are frozen with their domain, told of, and go on where they were stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import read_stack_metadata
from brainstacks.stacks.registry import Registry
from tests.tiny import write_records
from tests.training.curricula import digests, quiet, recipe
from training.curriculum.outer_loop import run_curriculum
from training.recipe.recipe import Recipe
from training.reinforce.stage import StageTraining
from training.report.records import RunRecords
from training.report.reinforcement import reinforcement
from training.runs.log import canonical
from training.runs.paths import RunPaths
from training.runs.signals import Interrupted

STAGE = {
    "steps": 4,
    "batch_size": 2,
    "learning_rate": 5e-3,
    "warmup_steps": 1,
    "eval_every": 2,
    "held_out": 4,
}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"ask {i}", "chosen": "well hello", "rejected": "12345678"} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plan_of(base: Path, pairs: Path, **changes: Any) -> Recipe:
    stage = {**STAGE, "method": "dpo", "data": str(pairs), "max_nll_rise": 9.0, **changes}
    return recipe(base, domains=[{"name": "chat", "licence": "CC0", "rl": stage}, {"name": "math"}])


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_stage_is_a_round_more_of_its_domains_stack_and_is_told_of_before_and_after(
    tiny_directory: Path, data: Path, pairs: Path, registry: Registry, tmp_path: Path
) -> None:
    told: list[str] = []
    run_curriculum(plan_of(tiny_directory, pairs), registry, tmp_path / "run", data, told.append)
    stack = read_stack_metadata(registry.blob_path(digests(registry)["chat"]))
    assert stack.rounds == 2
    assert [source.name for source in stack.data][-1].endswith("pairs.jsonl")
    assert stack.hyperparameters["rl"][0]["method"] == "dpo"
    first, second = stack.losses
    assert second["method"] == "dpo"
    assert second["after"]["accuracy"] > second["before"]["accuracy"] == 0.5
    assert second["selection_before"] == pytest.approx(first["selection_after"], abs=1e-5)

    logged = lines(tmp_path / "run")
    kinds = [line["kind"] for line in logged if line["domain"] == "chat" and line["round"] == 1]
    assert kinds.count("reinforce-step") == 4
    assert kinds.count("reinforce-evaluation") == 2
    (effects,) = [line for line in logged if line["kind"] == "reinforced"]
    assert effects["after"] == second["after"]
    assert set(effects["effects"]) == {"chat", "math"}
    said = [line for line in told if line.startswith("chat, stage 1: ")]
    assert "accuracy 0.5000 -> " in said[0]
    assert "validation chat " in said[1]

    records = RunRecords(RunPaths(tmp_path / "run"), registry)
    assert [len(rounds) for rounds in records.logged.values()] == [1, 1], "curves are those of rounds"
    assert records.unfinished is None
    figures, losses = reinforcement(records).tables
    accuracy = next(row for row in figures.rows if row[3] == "accuracy")
    assert accuracy[:3] == ("chat", "1", "dpo")
    assert accuracy[4] == "0.5"
    assert accuracy[6].startswith("frozen; ")
    assert [row[2] for row in losses.rows] == ["chat", "math"]


def test_a_stage_that_is_stopped_goes_on_to_the_same_bytes(
    tiny_directory: Path,
    data: Path,
    pairs: Path,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_of(tiny_directory, pairs)
    run_curriculum(plan, registry, tmp_path / "run", data, quiet)
    other, stopped = Registry(tmp_path / "other", create=True), tmp_path / "stopped"
    log_step = StageTraining.log_step

    def stopping(self: StageTraining, *values: Any) -> None:
        log_step(self, *values)
        self.stop_asked = self.state.step == 3

    with monkeypatch.context() as patch:
        patch.setattr(StageTraining, "log_step", stopping)
        with pytest.raises(Interrupted, match="step 3 of chat, dpo 1"):
            run_curriculum(plan, other, stopped, data, quiet)
    run_curriculum(plan, other, stopped, data, quiet)
    assert digests(other) == digests(registry)
    found = [
        [canonical(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (tmp_path / "run", stopped)
    ]
    assert found[0] == found[1]


def test_a_run_refuses_other_pairs_and_goes_on_where_its_recipe_has_no_stage(
    tiny_directory: Path, data: Path, pairs: Path, registry: Registry, tmp_path: Path
) -> None:
    run_curriculum(plan_of(tiny_directory, pairs), registry, tmp_path / "run", data, quiet)
    with pairs.open("a") as file:
        file.write(json.dumps({"prompt": "new", "chosen": "a", "rejected": "b"}) + "\n")
    with pytest.raises(ConfigError, match=r"stages\.chat"):
        run_curriculum(plan_of(tiny_directory, pairs), registry, tmp_path / "run", data, quiet)
    run_curriculum(recipe(tiny_directory, "chat"), registry, tmp_path / "plain", data, quiet)
    identity = json.loads((tmp_path / "plain" / "run.json").read_text())
    assert "stages" not in identity
    assert "rl" not in identity["recipe"]["domains"][0], "a run of before there were stages goes on"


def test_a_stage_that_gains_nothing_leaves_the_stack_as_its_rounds_made_it(
    tiny_directory: Path, data: Path, pairs: Path, registry: Registry, tmp_path: Path
) -> None:
    told: list[str] = []
    plan = plan_of(tiny_directory, pairs, min_gain=0.9)
    run_curriculum(plan, registry, tmp_path / "run", data, told.append)
    assert read_stack_metadata(registry.blob_path(digests(registry)["chat"])).rounds == 1
    assert any("not frozen" in line for line in told)
    assert not [line for line in lines(tmp_path / "run") if line["kind"] == "reinforced"]
    section = reinforcement(RunRecords(RunPaths(tmp_path / "run"), registry))
    assert {row[6][:10] for row in section.tables[0].rows} == {"not frozen"}


def test_what_cannot_be_learnt_from_is_refused_before_the_base_is_loaded(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ConfigError, match="no data file"):
        run_curriculum(plan_of(nowhere, tmp_path / "none.jsonl"), registry, tmp_path / "run", data, quiet)
    no_pairs = write_records(tmp_path / "records.jsonl", [("a", "b")])
    with pytest.raises(ConfigError, match="no 'chosen'"):
        run_curriculum(plan_of(nowhere, no_pairs), registry, tmp_path / "run", data, quiet)
    own = recipe(nowhere, domains=[{"name": "chat", "rl": {"method": "dpo"}}])
    with pytest.raises(ConfigError, match="chat, dpo 1: there is nothing to learn from"):
        run_curriculum(own, registry, tmp_path / "run", data, quiet)
