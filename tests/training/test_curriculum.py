"""A tiny curriculum from data to an evaluated registry: what its stacks are, and what freezes none."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
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
from tests.tiny_gguf import save_gguf
from tests.training.curricula import digests, quiet, recipe
from training.curriculum.outer_loop import run_curriculum, run_stack
from training.data.domains import prepare
from training.evaluation.evaluation import Evaluation
from training.evaluation.expert_use import load_expert_use
from training.evaluation.run import evaluate_run
from training.rounds.inner_loop import train_round
from training.rounds.task import RoundResult
from training.router.training import train_router


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
        assert stack.signature is not None
        assert stack.signature.prompts == 23, "all that it was trained on"

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
    assert (written["stacks"], written["router"]) == registry.snapshot().serving
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


def test_a_stack_may_have_deltas_on_some_projections_and_says_how_it_was_trained(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    plan = recipe(tiny_directory, "math", router={})
    stack = dataclasses.replace(plan.stack, projections=("q_proj", "v_proj", "down_proj"))
    training = dataclasses.replace(plan.round, dropout=0.1, gate_learning_rate=1e-3)
    run_curriculum(
        dataclasses.replace(plan, stack=stack, round=training), registry, tmp_path / "run", data, quiet
    )
    path = registry.blob_path(digests(registry)["math"])
    metadata = read_stack_metadata(path)
    assert metadata.config.projections == stack.projections == tuple(metadata.dims)
    assert {name.split(".")[-2] for name in load_stack(path).tensors} == set(stack.projections)
    assert metadata.hyperparameters["dropout"] == 0.1
    assert metadata.hyperparameters["gate_learning_rate"] == 1e-3
    served = ComposedModel.load(tiny_directory, registry=tmp_path / "registry", quantization="none")
    ids = torch.tensor([[1, 2, 3, 4]])
    assert not torch.equal(served.logits(ids, weights={"math": 1.0}), served.logits(ids))


def test_to_add_a_domain_takes_its_own_data_alone_unless_others_decide_what_it_learns(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    run_curriculum(recipe(tiny_directory, "chat"), registry, tmp_path / "first", data, quiet)
    own = tmp_path / "own"
    shutil.copytree(data / "math", own / "math")
    plan = recipe(tiny_directory, "chat", "math")
    assert run_stack(plan, "math", registry, tmp_path / "second", own, quiet) == ()
    assert set(digests(registry)) == {"chat", "math"}
    for decides in ({"null_space": {"directions": 6, "samples": 12}}, {"data": {"contamination": "drop"}}):
        with pytest.raises(ConfigError, match="'chat' has no sources"):
            run_stack(recipe(tiny_directory, **decides), "math", registry, tmp_path / "third", own, quiet)


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
