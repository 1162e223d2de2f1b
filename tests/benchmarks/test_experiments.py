"""Studies: contestants have what they are said to have, and each command ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.experiments import (
    designs,
    earlier_stacks,
    methods,
    null_space,
    quantization,
    rounds,
    run_all,
)
from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.materials import Materials
from benchmarks.experiments.measurements import answer_tokens, nats_under, throughout
from benchmarks.experiments.settings import Settings
from benchmarks.experiments.study import Study, run_studies
from brainstacks.errors import ConfigError
from tests.benchmarks.experimenting import settings_of
from training.runs.signals import StopRequest

STUDIES = {study.name: study for study in run_all.STUDIES}


def find(study: Study, lab: Laboratory) -> Any:
    lab.train_all(study.trainings(lab.materials))
    found = study.find(lab)
    assert "nan" not in found.tables.lower()
    return found


# --- studies -------------------------------------------------------------------------------------


def test_rounds_stack_up_and_the_others_get_their_steps_or_parameters(lab: Laboratory) -> None:
    found = find(rounds.STUDY, lab)
    assert set(found.figures["validation_nll"]) == {
        *("base", "1 round", "2 rounds", "3 rounds", rounds.LONGER, rounds.LORA)
    }
    last = designs.rounds(lab.settings, "math", 0, 3)[-1]
    earlier = designs.rounds(lab.settings, "math", 0, 2)[-1]
    assert lab.trained(last).losses[0] == pytest.approx(min(lab.trained(earlier).losses), abs=1e-5)


def test_methods_see_equal_steps_with_equal_parameters_at_the_rate_that_selection_records_choose(
    lab: Laboratory,
) -> None:
    findings = find(methods.STUDY, lab)
    found, tables = findings.figures, findings.tables
    counts = found["trainable_parameters"]
    assert max(counts.values()) <= 1.1 * min(counts.values())
    assert set(found["routed_less_others"]) == {
        *(methods.BASE, methods.UNGATED, methods.LABELLED, methods.SEQUENTIAL, methods.JOINT),
        *(methods.LORAS, methods.ROUTED_LORAS, methods.O_LORA),
    }
    sequential = designs.sequence(lab.settings, 0, lab.materials.lora(2))
    joint = designs.alone(lab.settings, lab.settings.domains, 0, lab.materials.lora(2))
    assert sum(t.steps for t in sequential) == joint.steps
    assert set(found["learning_rates"]) == set(found["trainable_parameters"])
    assert "the lowest tried" in tables or "the highest tried" in tables
    for name, rate in found["learning_rates"].items():
        losses = found["selection_nll"][name]
        assert list(losses) == ["0.005", "0.0025"]
        assert losses[f"{rate:g}"] == min(losses.values())
    taken = found["learning_rates"][methods.JOINT] / lab.settings.learning_rate
    joint = designs.alone(lab.settings, lab.settings.domains, 0, lab.materials.lora(2), scale=taken)
    composed = lab.stacked({"all": joint}, "none")
    nats = nats_under(lab.materials, composed, throughout(lab.settings.domains, {"all": 1.0}))
    for domain, values in nats.items():
        nll = sum(values) / sum(answer_tokens(lab.materials, [domain])[domain])
        figures = found["validation_nll"][methods.JOINT]["domains"][domain]
        assert figures["value"] == pytest.approx(nll, abs=1e-5)


@pytest.mark.slow
def test_earlier_stacks_compares_the_modes_in_every_use(lab: Laboratory) -> None:
    found = find(earlier_stacks.STUDY, lab)
    assert set(found.figures["winners"]) == {"ungated", "only own", "routed", "oracle"}
    first = found.figures["first_records"]
    for mode in earlier_stacks.MODES:
        best = first[f"{mode}: oracle"]["mean"]["value"]
        for use in ("ungated", "only own"):
            assert best <= first[f"{mode}: {use}"]["mean"]["value"] + 1e-5


def test_null_space_reports_what_is_forgotten_and_what_is_given_up(lab: Laboratory) -> None:
    found = find(null_space.STUDY, lab)
    rows = found.figures["forgetting"]
    assert rows["off"]["captured energy"] is None
    assert 0 < rows["output"]["captured energy"].median <= 1
    assert rows["off"]["gain given up"].median == 0
    stacks = designs.curriculum(lab.settings, 0, "all")
    matrix = null_space.forgetting(lab, stacks)
    cells = found.figures["validation_nll"]["off: ungated"]["domains"]
    for domain in stacks:
        assert matrix.rows[-1][domain].ungated == pytest.approx(cells[domain]["value"], abs=1e-5)


def test_quantization_puts_nf4_stacks_on_the_unquantised_base(
    tiny_directory: Path, data: Path, tmp_path: Path
) -> None:
    settings = settings_of(tiny_directory, quantization="nf4", steps=2)
    kept = tmp_path / "kept"
    lab = Laboratory(Materials(settings, data, kept, StopRequest()), kept, lambda line: None)
    found = find(quantization.STUDY, lab)
    assert set(found.figures["gains"]) == {
        f"{case}, {what}" for case in quantization._cases(settings) for what in ("own", "other")
    }
    assert found.figures["quantisation_costs"]["value"] != 0.0


# --- commands ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_writes_results_and_a_second_one_trains_nothing(
    settings: Settings, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    chosen = (STUDIES["rounds"], STUDIES["null_space"])
    run_studies(chosen, settings, data, tmp_path / "run", tmp_path / "results", told.append)
    assert any("min" in line and "steps left" in line for line in told)
    files = sorted((tmp_path / "results").glob("experiment-*.json"))
    assert [f.name.split("-")[1] for f in files] == ["null_space", "rounds"]
    first = [json.loads(f.read_text()) for f in files]
    for file in (*files, *(f.with_suffix(".md") for f in files)):
        assert str(tmp_path) not in file.read_text()
    monkeypatch.setattr("benchmarks.experiments.laboratory.train_round", None)
    run_studies(chosen, settings, data, tmp_path / "run", tmp_path / "results", lambda line: None)
    again = [json.loads(f.read_text()) for f in files]
    for one, other in zip(first, again, strict=True):
        assert {**one, "machine": None} == {**other, "machine": None}


@pytest.mark.parametrize("name", STUDIES)
def test_help_asks_the_question_and_gives_a_quick_example(name: str) -> None:
    module = {m.STUDY.name: m for m in (earlier_stacks, methods, null_space, quantization, rounds)}
    result = CliRunner().invoke(module[name].app, ["--help"])
    assert result.exit_code == 0
    shown = " ".join(result.output.split())
    assert STUDIES[name].question in shown
    assert f"python -m benchmarks.experiments.{name} " in shown


def test_options_become_settings(tiny_directory: Path, data: Path, tmp_path: Path) -> None:
    flags = [*("--data", str(data), "--run", str(tmp_path / "run"), "--output", str(tmp_path / "results"))]
    flags += [*("--base", str(tiny_directory), "--quantization", "none", "--seeds", "3", "--steps", "2")]
    flags += [
        *("--domains", "math,chat", "--long-domains", "chat", "--max-tokens", "96", "--validation", "2")
    ]
    result = CliRunner().invoke(rounds.app, flags, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (file,) = (tmp_path / "results").glob("*.json")
    chosen = json.loads(file.read_text())["settings"]
    assert (chosen["domains"], chosen["seeds"], chosen["steps"]) == (["math", "chat"], [3], 2)
    assert json.loads(file.read_text())["compute"] == "float32"
    assert "none, computed in float32; 2 steps" in file.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    "changes",
    [{"domains": ("math",)}, {"seeds": ()}, {"long_domains": ("law",)}, {"rates": (2.0,)}],
)
def test_settings_that_fit_no_study_are_refused(tiny_directory: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        settings_of(tiny_directory, **changes)


def test_data_that_does_not_fit_is_refused(tiny_directory: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="raise max_tokens"):
        Materials(settings_of(tiny_directory, max_tokens=16), data, tmp_path, StopRequest())
