"""From data to a published router: its metrics are those of what it routes, and nothing is measured twice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from brainstacks.base_model import BaseModel, load_base
from brainstacks.errors import ConfigError
from brainstacks.routing.router import Router
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import read_router_metadata
from tests.tiny import publish_stack, random_stack, write_records
from training.data.domains import DomainData, prepare
from training.recipe.recipe import Recipe, recipe_from
from training.router.prompts import router_prompts
from training.router.stacked_base import StackedBase
from training.router.training import train_router
from training.runs.directory import RunDirectory


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = random.Random(0)
    for domain in ("chat", "code", "math"):
        prompts = ["".join(rng.choices(f"{domain}0123456789", k=9)) for _ in range(38)]
        for split, rows in (("train", prompts[:30]), ("validation", prompts[30:])):
            write_records(tmp_path / "data" / domain / f"{split}.jsonl", [(p, domain * 3) for p in rows])
    return tmp_path / "data"


def recipe(base: Path, *domains: str) -> Recipe:
    return recipe_from(
        {
            "base": str(base),
            "quantization": "none",
            "data": {"selection": 6},
            "router": {"prompts": 4, "held_out": 3, "max_tokens": 96, "epochs": 2, "hidden_dim": 16},
            "domains": [{"name": name, "licence": "CC0"} for name in domains],
        }
    )


def publish(registry: Registry, base: BaseModel, tmp_path: Path, domain: str, seed: int) -> None:
    publish_stack(registry, base.identity, domain, random_stack(base.identity.dims, seed, size=0.3), tmp_path)


def test_the_published_router_has_the_metrics_of_what_it_routes(
    tiny_base: BaseModel, tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    for seed, domain in enumerate(("chat", "math")):
        publish(registry, tiny_base, tmp_path, domain, seed)
    plan, run = recipe(tiny_directory, "chat", "math"), tmp_path / "run"
    prepared, lines = prepare(plan, data), list[str]()
    train_router(plan, prepared, registry, run, lines.append)
    assert "chat: 4 prompts (3 of them no stack trained on), 3 held out; 0 left out" in lines[1]

    history = registry.snapshot().router
    assert history is not None
    path = registry.blob_path(history.current.digest)
    file = read_router_metadata(path)
    stacked = StackedBase.load(load_base(tiny_directory, quantization="none"), registry)
    assert file.stacks == stacked.digests
    assert file.data == (*prepared["chat"].sources, *prepared["math"].sources)
    assert file.metrics["train_prompts"] == 8
    assert file.metrics["train_prompts_unseen"] == 6
    assert file.metrics["held_out_prompts"] == 6
    assert file.metrics["left_out_prompts"] == 0
    router = Router.load(path, stacked.base)
    nats, tokens = 0.0, 0
    for found in router_prompts(prepared, plan.router, stacked.tokenizer).values():
        for one in found.held_out:
            (given,) = router.probabilities(stacked.base, [one.prompt])
            applied = {d: p for d, p in given.items() if p > plan.router.gate_threshold}
            nats += float(stacked.nll([one], [applied])[0])
            tokens += len(one.response)
    assert file.metrics["held_out_nll_routed"] == pytest.approx(nats / tokens, abs=1e-4)

    # Another start measures nothing, and comes to the same router.
    size = (run / "outcomes.jsonl").stat().st_size
    train_router(plan, prepared, registry, run, lambda _: None)
    assert (run / "outcomes.jsonl").stat().st_size == size
    again = registry.snapshot().router
    assert again is not None
    assert again.current.digest == history.current.digest


def test_a_domain_more_reuses_what_was_measured_without_it(
    tiny_base: BaseModel, tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    plan, run, lines = recipe(tiny_directory, "chat", "math", "code"), tmp_path / "run", list[str]()
    prepared = prepare(plan, data)
    for seed, domain in enumerate(("chat", "math")):
        publish(registry, tiny_base, tmp_path, domain, seed)
    train_router(plan, prepared, registry, run, lambda _: None)
    publish(registry, tiny_base, tmp_path, "code", 7)
    train_router(plan, prepared, registry, run, lines.append)
    told = next(line for line in lines if line.startswith("outcomes: "))
    assert told.startswith("outcomes: 0 of 21 examples are measured already")
    assert told.endswith(f"of the others' {21 * 8} combinations, {14 * 4} are")
    assert "router: version 2" in lines[-1]


def test_two_starts_do_not_write_to_one_run(tiny_directory: Path, registry: Registry, tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run"), pytest.raises(ConfigError, match="'run' is being worked on"):
        train_router(recipe(tiny_directory, "chat"), {}, registry, tmp_path / "run")


def test_a_registry_without_stacks_or_with_one_of_an_unknown_domain_is_refused(
    tiny_base: BaseModel, tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    plan = recipe(tiny_directory, "chat")
    prepared: dict[str, DomainData] = prepare(plan, data)
    with pytest.raises(ConfigError, match="stacks of no domain"):
        train_router(plan, prepared, registry, tmp_path / "run")
    publish(registry, tiny_base, tmp_path, "math", 0)
    with pytest.raises(ConfigError, match="stacks of math, the recipe data of chat"):
        train_router(plan, prepared, registry, tmp_path / "run")
