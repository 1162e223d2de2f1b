"""The search between a mixture and a LoRA: both get the same, and the command ends, goes on and says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.experiments import moe_search
from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.materials import Materials
from benchmarks.experiments.moe_search import LORA, MIXTURE, PRESETS, SearchSettings, spaces
from benchmarks.experiments.search import Budget
from benchmarks.experiments.side_by_side import SideBySide
from benchmarks.experiments.study import run_studies
from brainstacks.errors import ConfigError
from tests.benchmarks.experimenting import settings_of
from training.evaluation.intervals import Estimate
from training.recipe.settings import StackRecipe
from training.runs.signals import Interrupted, StopRequest

SHORT: dict[str, Any] = {
    "budget": Budget((1, 2), (8, 1)),
    "steps": 2,
    "eval_every": 1,
    "learning_rate": 1e-2,
    "stack": StackRecipe(rank=2, experts=4, dtype="float32"),
}


def settings_for(base: Path, **changes: Any) -> SearchSettings:
    shared = {**vars(settings_of(base)), **SHORT, **changes}
    return SearchSettings(**shared)


@pytest.mark.slow
def test_a_search_tells_what_it_found_and_a_second_run_trains_nothing(
    tiny_directory: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    settings = settings_for(tiny_directory, seeds=(0, 1))
    places = (settings, data, tmp_path / "run", tmp_path / "results")
    run_studies([moe_search.STUDY], *places, told.append)
    (file,) = (tmp_path / "results").glob("experiment-moe_search-*.json")
    first = json.loads(file.read_text())
    shown = file.with_suffix(".md").read_text()
    assert "nan" not in shown.lower()
    assert first["verdict"] in shown
    assert set(first["validation_nll"]) == {"base", MIXTURE, LORA}
    assert [step for step, _ in first["selection_curves"][LORA][1]] == [0, 1, 2]
    assert len({curves[0][0][1] for curves in first["selection_curves"].values()}) == 1, "all begin alike"
    for kind in (MIXTURE, LORA):
        tried = first["searches"][kind]
        assert len(tried["1"]) >= settings.budget.widths[0]
        assert first["best"][kind] in [{k: v for k, v in t.items() if k != "loss"} for t in tried["2"]]
    totals = {kind: sum(count.values()) for kind, count in first["trainable_parameters"].items()}
    assert totals[MIXTURE] <= 1.1 * totals[LORA]
    assert any("steps left, about" in line for line in told)
    monkeypatch.setattr("benchmarks.experiments.laboratory.train_round", None)
    run_studies([moe_search.STUDY], *places, lambda line: None)
    again = json.loads(file.read_text())
    assert {**again, "machine": None} == {**first, "machine": None}


def test_a_mixture_is_searched_in_all_that_a_lora_is_and_in_its_gates() -> None:
    found = spaces(PRESETS["gpu"], {MIXTURE: 16, LORA: 68})
    mixture, lora = found[MIXTURE], found[LORA]
    assert mixture.ratios.items() >= lora.ratios.items()
    assert mixture.choices.items() >= lora.choices.items()
    assert set(mixture.choices) - set(lora.choices) == {"gate_init", "noise", "balance", "top_k", "soft"}
    assert (mixture.start.top_k, mixture.choices["top_k"]) == (2, [1, 4])
    assert mixture.start.stack(16) == StackRecipe(rank=16, alpha=16.0, top_k=2, dtype="float32")
    assert lora.start.stack(68).alpha == pytest.approx(16.0)


def test_presets_end_at_the_length_of_the_paper_and_say_what_they_spend() -> None:
    for name, preset in PRESETS.items():
        assert preset.steps == (4 if name == "quick" else 400)
        assert all(steps % preset.eval_every == 0 for steps in preset.budget.lengths)
    shown = " ".join(CliRunner().invoke(moe_search.app, ["--help"]).output.split())
    assert moe_search.STUDY.question in shown
    for name in ("gpu", "cpu"):
        assert f"about {PRESETS[name].about} steps" in shown
    assert "--preset quick" in shown


def test_the_verdict_says_of_how_many_seeds_and_whether_there_was_a_loss_to_reach() -> None:
    better = Estimate(-0.2, (-0.3, -0.1))
    assert moe_search._told(better, 1).startswith("The mixture pays (one seed): -0.200")
    assert moe_search._told(better, 2).startswith("The mixture pays (2 seeds)")
    assert "final loss in 4 (4..4) times fewer" in moe_search._fast([10.0], 40)
    assert "With 1 of 2 seeds it does not reach" in moe_search._fast([10.0, None], 40)
    assert "With 1 of 2 seeds the LoRA ends no lower than it began" in moe_search._fast([0.0, 10.0], 40)


def test_the_device_that_is_named_is_taken_or_refused(tiny_directory: Path, tmp_path: Path) -> None:
    flags = ["--data", str(tmp_path), "--base", str(tiny_directory), "--run", str(tmp_path / "run")]
    result = CliRunner().invoke(moe_search.app, [*flags, "--preset", "quick", "--device", "cuda:99"])
    assert result.exit_code == 1
    assert "cuda:99" in result.output


def test_a_budget_of_other_steps_is_refused(tiny_directory: Path) -> None:
    with pytest.raises(ConfigError, match="steps is 3; it is the budget's last length, 2"):
        settings_for(tiny_directory, steps=3)


@pytest.mark.slow
def test_trainings_side_by_side_are_those_made_in_turn(
    tiny_directory: Path, data: Path, tmp_path: Path
) -> None:
    settings = settings_for(tiny_directory)
    space = spaces(settings, {MIXTURE: 2, LORA: 2})[MIXTURE]
    trainings = [s.training(2, "math", 2, 0, "none") for s in space.near(space.start)[:3]]
    stop = StopRequest()
    kept = tmp_path / "several"
    with SideBySide(2, settings, data, kept, "cpu", stop) as several:
        materials = Materials(settings, data, kept, stop, "cpu")
        lab = Laboratory(materials, kept, lambda line: None, several.trained)
        lab.train_all(trainings)
        assert all(lab._result(t).is_dir() for t in trainings)
        alone = Laboratory(lab.materials, tmp_path / "alone", lambda line: None)
        for training in trainings:
            assert lab.trained(training).history == alone.trained(training).history
        stop.requested = True
        later = [s.training(2, "chat", 2, 0, "none") for s in space.near(space.start)[:3]]
        with pytest.raises(Interrupted):
            lab.train_all(later)
