"""A run goes on where it was, remakes what is damaged, and refuses to go on with anything else."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
from rich.console import Console

from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import read_stack_metadata
from brainstacks.stacks.registry import Registry
from tests.tiny import write_records
from tests.training.curricula import digests, quiet, recipe
from training.curriculum import outer_loop
from training.curriculum.outer_loop import PrefixChanged, run_curriculum, run_stack
from training.data.domains import prepare
from training.evaluation.run import evaluate_run
from training.rounds import compute
from training.router.training import train_router
from training.runs.processes import Processes


def test_a_run_without_its_later_half_ends_with_the_very_same_stacks(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    plan = recipe(tiny_directory, earlier_stacks="sampled", max_rounds=2)
    run_curriculum(plan, registry, tmp_path / "run", data, quiet)
    other, again = Registry(tmp_path / "other", create=True), tmp_path / "again"
    run_curriculum(plan, other, again, data, quiet)
    shutil.rmtree(again / "math")
    run_curriculum(plan, other, again, data, quiet)
    assert digests(other) == digests(registry)


def test_more_processes_than_a_step_has_forwards_are_refused_before_anything_is_written(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outer_loop, "joined", lambda device: nullcontext(Processes(count=3)))
    told = (
        r"3 processes cannot share a step's 1 forward\(s\) \(round.accumulation\), each of 6 row.*at most 1"
    )
    with pytest.raises(ConfigError, match=told):
        run_curriculum(recipe(tiny_directory), registry, tmp_path / "run", data, quiet)
    assert not (tmp_path / "run").exists()


def test_a_run_refuses_another_recipe_order_or_data_and_says_what_differs(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_curriculum(recipe(tiny_directory), registry, run, data, quiet)
    plan = recipe(tiny_directory)
    faster = dataclasses.replace(plan, round=dataclasses.replace(plan.round, learning_rate=0.1))
    with pytest.raises(ConfigError, match=r"recipe\.round\.learning_rate: 0\.005 -> 0\.1"):
        run_curriculum(faster, registry, run, data, quiet)
    with pytest.raises(ConfigError, match=r'recipe\.domains\.0\.name: "chat" -> "math"'):
        run_curriculum(recipe(tiny_directory, "math", "chat"), registry, run, data, quiet)
    with (data / "math" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"id": "new", "prompt": "0101", "response": "1"}) + "\n")
    with pytest.raises(ConfigError, match=r"data\.math"):
        run_curriculum(recipe(tiny_directory), registry, run, data, quiet)


def test_a_run_computes_in_what_its_first_start_measured_to_its_end(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its router and its evaluation too; and other machines, or other hours, would measure otherwise."""
    plan, run, lines = recipe(tiny_directory, quantization="nf4"), tmp_path / "run", list[str]()
    monkeypatch.setattr(compute, "seconds", lambda linear, dtype, backward: (2.0, 1.0))
    run_curriculum(plan, registry, run, data, lines.append)
    assert lines[0].startswith(
        "computes in float32: the forward and backward of one linear takes a core 1000.0"
    )
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["compute"] == "float32"
    stack = read_stack_metadata(registry.blob_path(digests(registry)["math"]))
    assert stack.hyperparameters["compute"] == "float32"

    monkeypatch.setattr(compute, "seconds", lambda linear, dtype, backward: (1.0, 2.0))
    shutil.rmtree(run / "math")
    other, again = Registry(tmp_path / "other", create=True), list[str]()
    run_curriculum(plan, other, run, data, again.append)
    assert again[0] == "computes in float32: as the run was started"
    assert digests(other) == digests(registry)
    asked = dataclasses.replace(plan, compute="float32")
    run_curriculum(asked, registry, run, data, quiet)  # what it does anyway
    with pytest.raises(ConfigError, match='compute: "float32" -> "bfloat16"'):
        run_curriculum(dataclasses.replace(plan, compute="bfloat16"), registry, run, data, quiet)

    for _ in range(2):
        train_router(plan, prepare(plan, data), registry, run, again.append)
        assert again.count("computes in float32: as the run was started") > 1
        (run / "run.json").unlink(missing_ok=True)  # the outcomes remember it as well
    records, narrow = prepare(plan, data), dataclasses.replace(plan, compute="bfloat16")
    with pytest.raises(ConfigError, match="another value of compute"):
        train_router(narrow, records, registry, run, quiet)
    console = Console(quiet=True)
    evaluate_run(asked, data, tmp_path / "registry", run, console, oracle_limit=0)
    assert json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["compute"] == "float32"


def test_a_finished_stack_that_was_damaged_is_made_again_and_not_published(
    tiny_directory: Path,
    data: Path,
    registry: Registry,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan, run = recipe(tiny_directory), tmp_path / "run"
    run_curriculum(plan, registry, run, data, quiet)
    path, generation = run / "chat" / "stack.safetensors", registry.generation
    content = bytearray(path.read_bytes())
    path.write_bytes(bytes([*content[:-1], content[-1] ^ 1]))
    run_curriculum(plan, registry, run, data, quiet)
    assert "stack.safetensors of chat does not verify" in caplog.text
    assert path.read_bytes() == content
    assert registry.generation == generation


def test_missing_data_names_the_file(tiny_directory: Path, registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none of the domains \(chat, math\); .*<domain>/train\.jsonl"):
        run_curriculum(recipe(tiny_directory), registry, tmp_path / "run", tmp_path, quiet)


def test_a_finished_run_leaves_a_later_version_and_a_rollback_alone(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    plan, run = recipe(tiny_directory, "chat"), tmp_path / "run"
    run_curriculum(plan, registry, run, data, quiet)
    other = dataclasses.replace(plan, round=dataclasses.replace(plan.round, seed=5))
    run_curriculum(other, registry, tmp_path / "other", data, quiet)
    newer = digests(registry)
    run_curriculum(plan, registry, run, data, quiet)
    assert digests(registry) == newer


def test_a_stack_trained_on_one_version_does_not_go_on_on_another(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    plan = recipe(tiny_directory)
    run_curriculum(recipe(tiny_directory, "chat"), registry, tmp_path / "first", data, quiet)
    run_stack(plan, "math", registry, tmp_path / "math", data, quiet)
    changed = recipe(tiny_directory, "chat", steps=4)
    run_curriculum(changed, registry, tmp_path / "second", data, quiet)
    with pytest.raises(ConfigError, match=r"on top of\.chat"):
        run_stack(plan, "math", registry, tmp_path / "math", data, quiet)


def test_a_prefix_that_computes_something_else_is_told_and_keeps_nothing_from_being_published(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    plan, run = recipe(tiny_directory), tmp_path / "run"
    run_curriculum(plan, registry, run, data, quiet)
    document = json.loads((run / "forgetting.json").read_text())
    del document["domains"][1], document["rows"][1]
    document["rows"][0]["chat"]["prefix"] += 1e-9
    (run / "forgetting.json").write_text(json.dumps(document))
    again = Registry(tmp_path / "again", create=True)
    with pytest.raises(PrefixChanged, match=r"chat is not, bit for bit.*Remove forgetting\.json"):
        run_curriculum(plan, again, run, data, quiet)
    assert digests(again) == digests(registry)


@pytest.mark.parametrize("domain", ["chat", "math"])
def test_a_domain_without_a_record_that_fits_is_refused_before_anything_is_trained(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path, domain: str
) -> None:
    write_records(data / domain / "validation.jsonl", [("x" * 200, "y")])
    with pytest.raises(ConfigError, match=f"none of the 1 validation records of {domain} fits 96 tokens"):
        run_curriculum(recipe(tiny_directory), registry, tmp_path / "run", data, quiet)
    assert not (tmp_path / "run" / "chat").exists()
