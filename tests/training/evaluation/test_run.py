"""What `evaluate` writes: of the registry, of the run's forgetting matrix, and how lm-eval was asked."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from brainstacks import ComposedModel
from brainstacks.base_model import identify_base
from brainstacks.errors import ConfigError
from brainstacks.stacks.registry import Registry
from tests.tiny import publish_stack, random_stack, save_base, write_records, write_router
from training.curriculum.forgetting import ForgettingMatrix, Losses
from training.data.domains import prepare
from training.evaluation.run import evaluate_run
from training.recipe.recipe import Recipe, recipe_from
from training.runs.provenance import data_identity

DOMAINS = ("chat", "math")


@pytest.fixture
def recipe(tiny_directory: Path) -> Recipe:
    return recipe_from(
        {
            "base": str(tiny_directory),
            "quantization": "none",
            "data": {"max_tokens": 64, "selection": 2},
            "domains": [{"name": name, "licence": "CC0"} for name in DOMAINS],
        }
    )


@pytest.fixture
def root(tiny_directory: Path, tmp_path: Path) -> Path:
    """A directory with `data`, `registry` and an empty `run`."""
    identity, registry = identify_base(tiny_directory), Registry(tmp_path / "registry", create=True)
    for i, domain in enumerate(DOMAINS):
        rows = [(f"{domain} {n}", "yes it is") for n in range(6)]
        write_records(tmp_path / "data" / domain / "train.jsonl", rows[:4])
        write_records(tmp_path / "data" / domain / "validation.jsonl", rows[4:])
        publish_stack(registry, identity, domain, random_stack(identity.dims, i, size=0.3), tmp_path)
    registry.publish_router(write_router(tmp_path / "router.safetensors", registry, identity))
    (tmp_path / "run").mkdir()
    return tmp_path


def evaluated(recipe: Recipe, root: Path, **options: Any) -> tuple[dict[str, Any], str]:
    """The document that was written, and what was printed."""
    console = Console(width=200, file=io.StringIO(), record=True)
    run = root / "run"
    evaluate_run(recipe, root / "data", root / "registry", run, console, oracle_limit=0, **options)
    return json.loads((run / "evaluation.json").read_text(encoding="utf-8")), console.export_text()


def test_the_matrix_of_the_run_is_shown_and_written_with_its_figures(recipe: Recipe, root: Path) -> None:
    chat, math = Losses(2.0, 2.5, 2.25), Losses(1.0, 1.0, 1.5)
    matrix = ForgettingMatrix().add("chat", {"chat": Losses(2.0, 2.0, 2.0)})
    matrix = matrix.add("math", {"chat": chat, "math": math})
    stacks, _ = Registry(root / "registry").snapshot().serving
    path = root / "run" / "forgetting.json"
    path.write_text(json.dumps({"stacks": stacks, **matrix.to_dict()}))
    document, shown = evaluated(recipe, root)
    assert ForgettingMatrix.from_dict(document["forgetting"]) == matrix
    assert document["forgetting"]["figures"]["ungated"] == {
        "average": 1.75,
        "backward_transfer": -0.5,
        "forgetting": 0.5,
    }
    assert "No prefix loss has changed" in shown
    path.write_text(json.dumps({"stacks": {**stacks, "chat": "0" * 64}, **matrix.to_dict()}))
    document, shown = evaluated(recipe, root)
    assert "forgetting" not in document
    assert "No prefix loss" not in shown
    assert "forgetting.json is of other stacks than the registry serves" in shown


def test_a_run_without_a_matrix_is_evaluated_all_the_same(recipe: Recipe, root: Path) -> None:
    document, shown = evaluated(recipe, root)
    assert (document["stacks"], document["router"]) == Registry(root / "registry").snapshot().serving
    assert "forgetting" not in document
    assert "lm_eval" not in document
    assert "prefix" not in shown


def test_a_damaged_matrix_is_named(recipe: Recipe, root: Path) -> None:
    (root / "run" / "forgetting.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"forgetting\.json"):
        evaluated(recipe, root)


@pytest.mark.parametrize(("options", "chat"), [({}, True), ({"chat": False}, False)])
def test_lm_eval_asks_in_the_chat_template_unless_told_otherwise(
    recipe: Recipe, root: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, bool], chat: bool
) -> None:
    pytest.importorskip("lm_eval")
    results = {"base": {"sums": {"acc,none": 0.5}}}
    asked: list[Any] = []

    def run_harness(model: ComposedModel, tasks: Any, limit: Any, *, chat: bool) -> Any:
        asked.append((tuple(tasks), limit, chat))
        assert {len(site.module._forward_hooks) for site in model.base.sites.values()} == {1}  # its own
        return results

    monkeypatch.setattr("training.evaluation.harness.check_tasks", lambda names: None)
    monkeypatch.setattr("training.evaluation.harness.run_harness", run_harness)
    document, _ = evaluated(recipe, root, tasks=("sums",), limit=1, **options)
    assert asked == [(("sums",), 1, chat)]
    assert document["lm_eval"] == {"chat_template": chat, "limit": 1, "results": results}


def test_what_was_measured_is_written_before_lm_eval_can_fail(
    recipe: Recipe, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")

    def run_harness(*arguments: Any, **options: Any) -> Any:
        raise ConfigError("no such task")

    monkeypatch.setattr("training.evaluation.harness.check_tasks", lambda names: None)
    monkeypatch.setattr("training.evaluation.harness.run_harness", run_harness)
    with pytest.raises(ConfigError, match="no such task"):
        evaluated(recipe, root, tasks=("smus",))
    document = json.loads((root / "run" / "evaluation.json").read_text(encoding="utf-8"))
    assert set(document["nll"]) == set(DOMAINS)
    assert (root / "run" / "expert_use.json").is_file()


def test_a_task_that_lm_eval_does_not_know_is_refused_before_anything_is_measured(
    recipe: Recipe, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = pytest.importorskip("lm_eval.tasks")
    only = tasks.TaskManager(include_defaults=False)
    monkeypatch.setattr("training.evaluation.harness.TaskManager", lambda: only)
    with pytest.raises(ConfigError, match="lm-eval has no task smus"):
        evaluated(recipe, root, tasks=("smus",))
    assert not (root / "run" / "evaluation.json").exists()


def test_a_base_that_cannot_be_asked_in_chat_is_refused_before_anything_is_measured(
    recipe: Recipe, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    base = save_base(tmp_path / "plain")
    (base / "chat_template.jinja").unlink()
    monkeypatch.setattr("training.evaluation.harness.check_tasks", lambda names: None)
    with pytest.raises(ConfigError, match="'plain' has no chat template to ask in; give --no-chat"):
        evaluated(dataclasses.replace(recipe, base=str(base)), root, tasks=("sums",))
    assert not (root / "run" / "evaluation.json").exists()


def test_a_run_that_split_its_data_otherwise_is_refused(recipe: Recipe, root: Path) -> None:
    sources = data_identity(prepare(recipe, root / "data"))
    begun = {"recipe": {"data": dataclasses.asdict(recipe.data)}, "data": sources}
    (root / "run" / "run.json").write_text(json.dumps(begun))
    evaluated(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, max_tokens=63)), root)
    other = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, seed=1))
    with pytest.raises(ConfigError, match=r"(?s)other splits.*recipe\.data\.seed: 0 -> 1"):
        evaluated(other, root)
    write_records(root / "data" / "math" / "train.jsonl", [(f"math {n}", "no") for n in range(4)])
    with pytest.raises(ConfigError, match=r"(?s)other splits.*data\.math\.sources"):
        evaluated(recipe, root)


def test_a_domain_that_takes_records_of_one_that_is_trained_is_refused(recipe: Recipe, root: Path) -> None:
    """Added to a recipe with `reassign`, it moves what the others hold out."""
    shuffled = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, contamination="reassign"))
    begun = {
        "recipe": {"data": dataclasses.asdict(shuffled.data)},
        "data": data_identity(prepare(shuffled, root / "data")),
    }
    (root / "run" / "run.json").write_text(json.dumps(begun))
    rows = [("math 0", "yes it is"), ("math 0", "no"), *((f"sums {n}", "yes") for n in range(20))]
    write_records(root / "data" / "sums" / "train.jsonl", rows)
    write_records(root / "data" / "sums" / "validation.jsonl", [("sums 30", "yes")])
    domains = (*shuffled.domains, dataclasses.replace(shuffled.domains[0], name="sums"))
    with pytest.raises(ConfigError, match=r"(?s)other splits.*data\.math\.trained on: sha256"):
        evaluated(dataclasses.replace(shuffled, domains=domains), root)
