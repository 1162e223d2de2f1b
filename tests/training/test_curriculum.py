"""A tiny curriculum from data to an evaluated registry, stopped and resumed on the way."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from brainstacks import ComposedModel
from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import inspect_stack, read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import read_router_metadata
from brainstacks.stacks.tensors import load_stack
from tests.tiny import write_records
from tests.tiny_gguf import save_gguf
from training.curriculum.outer_loop import PrefixChanged, run_curriculum, run_stack
from training.data.domains import prepare
from training.evaluation.evaluation import Evaluation
from training.evaluation.expert_use import load_expert_use
from training.evaluation.run import evaluate_run
from training.recipe.recipe import Recipe, recipe_from
from training.rounds import compute
from training.rounds.inner_loop import train_round
from training.rounds.task import RoundResult
from training.router.training import train_router

ANSWERS = {"chat": "well hello", "math": "12345678", "noise": ""}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Prompts of letters or of digits; each domain has one answer to all of them, and one has none."""
    rng = random.Random(0)
    for domain, answer in ANSWERS.items():
        alphabet = "0123456789" if domain == "math" else "abcdefghij" if domain == "chat" else "xyz!?"
        prompts = ["".join(rng.choices(alphabet, k=rng.randint(5, 9))) for _ in range(36)]
        assert len(set(prompts)) == 36
        rows = [(p, answer or "".join(chr(rng.randrange(33, 127)) for _ in range(12))) for p in prompts]
        write_records(tmp_path / "data" / domain / "train.jsonl", rows[:28])
        write_records(tmp_path / "data" / domain / "validation.jsonl", rows[28:])
    return tmp_path / "data"


def recipe(base: Path, *domains: str, steps: int = 6, **changes: object) -> Recipe:
    return recipe_from(
        {
            "base": str(base),
            "quantization": "none",
            "earlier_stacks": "all",
            "data": {"max_tokens": 96, "selection": 12, "forgetting": 4},
            "stack": {"rank": 2, "alpha": 4.0, "experts": 2, "top_k": 1, "dtype": "float32"},
            "round": {
                "steps": steps, "batch_size": 6, "learning_rate": 5e-3, "warmup_steps": 2, "eval_every": 3,
                "checkpoint_every": 2,
            },
            "router": {
                "prompts": 8, "held_out": 4, "max_tokens": 96, "epochs": 3, "batch_size": 4, "hidden_dim": 16,
                "floors": {"chat": 0.2}, "soft_levels": [1.0, 0.5],
            },
            "domains": [{"name": name, "licence": "CC0"} for name in domains or ("chat", "math")],
            **changes,
        }
    )  # fmt: skip


def quiet(line: str) -> None:
    pass


def digests(registry: Registry) -> dict[str, str]:
    return {d: h.current.digest for d, h in registry.snapshot().domains.items()}


def test_train_publish_route_and_evaluate(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    plan, run = recipe(tiny_directory, steps=20), tmp_path / "run"
    assert run_curriculum(plan, registry, run, data, quiet) == ()

    # Stacks: published in order, each with where it comes from.
    domains = registry.snapshot().domains
    assert list(domains) == ["chat", "math"]
    chat, math = (read_stack_metadata(registry.blob_path(h.current.digest)) for h in domains.values())
    assert chat.predecessors == ()
    assert [(p.domain, p.digest) for p in math.predecessors] == [("chat", domains["chat"].current.digest)]
    assert [source.examples for source in chat.data] == [28, 8]
    assert chat.licence == "CC0"
    assert chat.hyperparameters["splits"]["selection"] == 12
    for stack in (chat, math):
        (losses,) = stack.losses
        assert losses["selection_after"] < losses["selection_before"] - 0.3
        assert losses["validation_after"] < losses["validation_before"] - 0.3

    # Starting anew trains nothing again.
    generation, log = registry.generation, (run / "metrics.jsonl").read_bytes()
    run_curriculum(plan, registry, run, data, quiet)
    assert registry.generation == generation
    assert (run / "metrics.jsonl").read_bytes() == log

    # The router knows the very stacks that are served.
    records = prepare(plan, data)
    train_router(plan, records, registry, run, quiet)
    history = registry.snapshot().router
    assert history is not None
    router = read_router_metadata(registry.blob_path(history.current.digest))
    assert router.stacks == digests(registry)
    assert router.config.floors == {"chat": 0.2}

    # What was trained is what is served.
    console = Console(quiet=True)
    result = evaluate_run(plan, data, tmp_path / "registry", run, console, oracle_limit=2)
    written = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert Evaluation.from_dict(written).nll == result.nll
    assert written["stacks"] == digests(registry)
    assert written["transfer"]["nll"]["chat"].keys() == {"chat", "math"}
    assert load_expert_use(run / "expert_use.json").keys() == {"chat", "math"}
    for domain, row in result.nll.items():
        assert row["only-own"] < row["base"] - 0.2, domain
    assert result.nll["chat"]["only-own"] == pytest.approx(chat.losses[0]["validation_after"], abs=1e-3)
    model = ComposedModel.load(tiny_directory, tmp_path / "registry", quantization="none", device="cpu")
    assert model.domains == ("chat", "math")
    assert model.route("abc").weights["chat"] >= 0.2


def test_a_stack_is_trained_evaluated_and_served_on_a_gguf_files_own_values(
    data: Path, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = save_gguf(tmp_path / "base.gguf")
    plan, run = recipe(base, "chat", steps=20, quantization="native"), tmp_path / "run"
    run_curriculum(plan, registry, run, data, quiet)
    train_router(plan, prepare(plan, data), registry, run, quiet)
    result = evaluate_run(plan, data, tmp_path / "registry", run, Console(quiet=True), oracle_limit=0)
    assert result.nll["chat"]["only-own"] < result.nll["chat"]["base"] - 0.2
    model = ComposedModel.load(base, tmp_path / "registry", quantization="native", device="cpu")
    assert model.generate(["abc"], max_tokens=3, temperature=0)


def test_residual_rounds_follow_while_they_help_and_end_in_one_stack(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    plan = recipe(tiny_directory, "chat", max_rounds=3, min_gain=0.01)
    run_curriculum(plan, registry, tmp_path / "run", data, quiet)
    stack = read_stack_metadata(registry.blob_path(digests(registry)["chat"]))
    assert 2 <= stack.rounds <= 3
    losses = [(r["selection_before"], r["selection_after"]) for r in stack.losses]
    assert all(before - after >= 0.01 for before, after in losses)
    for (_, after), (before, _) in itertools.pairwise(losses):
        assert before == pytest.approx(after, abs=1e-5), "a round starts where the last one ended"


def test_stacks_trained_without_the_earlier_ones_know_no_predecessor(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    run_curriculum(recipe(tiny_directory, earlier_stacks="none"), registry, tmp_path / "run", data, quiet)
    current = registry.snapshot().domain("math").current
    assert read_stack_metadata(registry.blob_path(current.digest)).predecessors == ()


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


def test_frozen_stacks_keep_their_bytes_their_prefix_losses_and_their_prefix_logits(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    run_curriculum(recipe(tiny_directory, "chat"), registry, tmp_path / "run", data, quiet)
    frozen = digests(registry)["chat"]
    ids = torch.arange(40)[None]

    def prefix_logits() -> torch.Tensor:
        model = ComposedModel.load(tiny_directory, tmp_path / "registry", quantization="none", device="cpu")
        return model.logits(ids, weights={"chat": 1.0})

    before = prefix_logits()
    run_curriculum(recipe(tiny_directory, "chat", "math"), registry, tmp_path / "longer", data, quiet)
    assert list(digests(registry)) == ["chat", "math"]
    assert digests(registry)["chat"] == frozen
    assert torch.equal(prefix_logits(), before)
    document = json.loads((tmp_path / "longer" / "forgetting.json").read_text())
    first, second = (row["chat"] for row in document["rows"])
    assert first["prefix"] == second["prefix"] == second["isolated"]
    assert second["ungated"] != second["prefix"]


def test_a_domain_of_noise_freezes_nothing_and_the_next_one_is_trained(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    # Which characters there are can be learnt even of noise: a small gain, which min_gain says is no skill.
    plan = recipe(tiny_directory, "noise", "chat", min_gain=0.5)
    assert run_curriculum(plan, registry, tmp_path / "run", data, quiet) == ("noise",)
    assert list(digests(registry)) == ["chat"]
    assert not (tmp_path / "run" / "noise" / "stack.safetensors").exists()


def test_a_run_driven_to_nan_freezes_nothing(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    plan = recipe(tiny_directory)
    wild = dataclasses.replace(plan.round, learning_rate=1e30, warmup_steps=0)
    plan = dataclasses.replace(plan, round=wild)
    assert run_curriculum(plan, registry, tmp_path / "run", data, quiet) == ("chat", "math")
    assert digests(registry) == {}


def test_a_round_that_diverged_after_its_best_snapshot_is_frozen_with_that(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(*arguments: Any) -> RoundResult:
        result = train_round(*arguments)
        broken = {**result.history[-1], "val_loss": math.nan, "train_loss": math.inf}
        return dataclasses.replace(result, history=[*result.history, broken])

    monkeypatch.setattr("training.curriculum.domain.train_round", diverging)
    assert run_curriculum(recipe(tiny_directory, steps=12), registry, tmp_path / "run", data, quiet) == ()
    stack = read_stack_metadata(registry.blob_path(digests(registry)["chat"]))
    assert stack.losses[0]["history"][-1]["val_loss"] is None
    assert stack.losses[0]["history"][-2]["val_loss"] is not None


@pytest.mark.parametrize("side", ["output", "input"])
def test_with_a_null_space_the_frozen_stack_stays_out_of_it(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path, side: str
) -> None:
    plan = recipe(tiny_directory, steps=12, null_space={"side": side, "directions": 6, "samples": 12})
    run_curriculum(plan, registry, tmp_path / "run", data, quiet)
    stack = read_stack_metadata(registry.blob_path(digests(registry)["math"]))
    assert stack.null_space is not None
    assert stack.null_space["side"] == side
    assert stack.null_space["domains"] == ["chat"]
    tensors = load_stack(registry.blob_path(digests(registry)["math"])).tensors
    from training.rounds.null_space import NullSpace
    from training.runs import checkpoint

    found = checkpoint.load(tmp_path / "run" / "math" / "null-space")
    assert found is not None
    space = NullSpace.from_tensors(found.tensors, found.state["facts"])
    for place in space.bases:
        layer, part = place
        V = space.bases[place]
        if side == "output":
            written = tensors[f"rounds.0.layers.{layer}.{part}.B"].T
            energy = (written @ V).square().sum() / written.square().sum()
            assert float(energy) < 1e-6, place
    if side == "input":
        read = tensors["rounds.0.layers.0.q_proj.A"]
        V = space.bases[0, 0]
        assert float((read @ V).square().sum() / read.square().sum()) < 1e-6
    without = Registry(tmp_path / "without", create=True)
    run_curriculum(dataclasses.replace(plan, null_space=None), without, tmp_path / "off", data, quiet)
    assert digests(without)["chat"] == digests(registry)["chat"]
    assert digests(without)["math"] != digests(registry)["math"]


def test_one_domain_is_added_to_what_a_registry_serves(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    plan = recipe(tiny_directory)
    run_curriculum(recipe(tiny_directory, "chat"), registry, tmp_path / "first", data, quiet)
    before = digests(registry)
    assert run_stack(plan, "math", registry, tmp_path / "second", data, quiet) == ()
    after = digests(registry)
    assert after["chat"] == before["chat"]
    metadata = inspect_stack(registry.blob_path(after["math"])).metadata
    assert [(p.domain, p.digest) for p in metadata.predecessors] == [("chat", before["chat"])]


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


def test_stacks_without_data_are_part_of_the_forgetting_matrix_and_refused_for_a_null_space(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    run_curriculum(recipe(tiny_directory, "chat"), registry, tmp_path / "first", data, quiet)
    alone = recipe(tiny_directory, "math", null_space={"directions": 6, "samples": 12}, router={})
    with pytest.raises(ConfigError, match="the recipe has none of chat; list these domains, or set null_sp"):
        run_stack(alone, "math", registry, tmp_path / "second", data, quiet)
    plan = dataclasses.replace(alone, null_space=None)
    run_stack(plan, "math", registry, tmp_path / "third", data, quiet)
    document = json.loads((tmp_path / "third" / "forgetting.json").read_text())
    (row,) = document["rows"]
    assert row["math"]["prefix"] == row["math"]["ungated"] != row["math"]["isolated"]


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
    with pytest.raises(ConfigError, match=r"chat/train\.jsonl"):
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
