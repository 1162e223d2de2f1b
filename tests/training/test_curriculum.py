"""A tiny curriculum from data to an evaluated registry, stopped and resumed on the way."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from brainstacks import ComposedModel
from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import read_router_metadata
from tests.tiny import write_records
from training.data import Record
from training.evaluation import MODES, evaluate_modes
from training.outer_loop import run_curriculum, selection_split
from training.recipe import Recipe, recipe_from
from training.router_training import train_router

ANSWERS = {"chat": "well hello", "math": "12345678"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Prompts of letters or of digits; each domain has one answer to all of them."""
    rng = random.Random(0)
    for domain, answer in ANSWERS.items():
        alphabet = "0123456789" if domain == "math" else "abcdefghij"
        prompts = ["".join(rng.choices(alphabet, k=rng.randint(3, 8))) for _ in range(36)]
        assert len(set(prompts)) == 36
        for split, rows in (("train", prompts[:28]), ("validation", prompts[28:])):
            write_records(tmp_path / "data" / domain / f"{split}.jsonl", [(p, answer) for p in rows])
    return tmp_path / "data"


def recipe(base: Path, earlier: str = "all", steps: int = 6) -> Recipe:
    return recipe_from(
        {
            "base": str(base),
            "quantization": "none",
            "max_tokens": 96,
            "selection": 6,
            "earlier_stacks": earlier,
            "stack": {"rank": 2, "alpha": 4.0, "experts": 2, "top_k": 1, "dtype": "float32"},
            "round": {
                "steps": steps, "batch_size": 6, "learning_rate": 5e-3, "warmup_steps": 2, "eval_every": 3,
            },
            "router": {
                "prompts": 8, "held_out": 4, "max_tokens": 96, "epochs": 3, "batch_size": 4, "hidden_dim": 16,
                "floors": {"chat": 0.2}, "soft_levels": [1.0, 0.5],
            },
            "domains": [{"name": "chat", "licence": "CC0"}, {"name": "math", "licence": "CC0"}],
        }
    )  # fmt: skip


def quiet(line: str) -> None:
    pass


def test_train_publish_route_and_evaluate(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    plan, run = recipe(tiny_directory, steps=20), tmp_path / "run"
    run_curriculum(plan, data, registry, run, quiet)

    # Stacks: published in order, each with where it comes from.
    domains = registry.snapshot().domains
    assert list(domains) == ["chat", "math"]
    chat, math = (read_stack_metadata(registry.blob_path(h.current.digest)) for h in domains.values())
    assert chat.predecessors == ()
    assert [(p.domain, p.digest) for p in math.predecessors] == [("chat", domains["chat"].current.digest)]
    assert [source.name for source in chat.data] == ["chat/train.jsonl", "chat/validation.jsonl"]
    assert [source.examples for source in chat.data] == [28, 8]
    assert chat.licence == "CC0"
    for stack in (chat, math):
        (losses,) = stack.losses
        assert losses["selection_after"] < losses["selection_before"] - 0.3
        assert losses["validation_after"] < losses["validation_before"] - 0.3

    # Starting anew trains nothing again.
    lines: list[str] = []
    generation = registry.generation
    run_curriculum(plan, data, registry, run, lines.append)
    assert sum("already trained" in line for line in lines) == 2
    assert registry.generation == generation

    # The router knows the very stacks that are served.
    train_router(plan, data, registry, run, quiet)
    history = registry.snapshot().router
    assert history is not None
    router = read_router_metadata(registry.blob_path(history.current.digest))
    assert router.stacks == {d: h.current.digest for d, h in domains.items()}
    assert router.config.floors == {"chat": 0.2}
    outcomes = (run / "outcomes.jsonl").read_text().splitlines()
    assert len(outcomes) == 1 + 2 * (8 + 4)

    # What was trained is what is served.
    results = evaluate_modes(str(tiny_directory), "none", registry, data, report=quiet)
    assert {domain: tuple(row) for domain, row in results.items()} == {"chat": MODES, "math": MODES}
    for row in results.values():
        assert row["only-own"] < row["base"] - 0.2
    assert results["chat"]["only-own"] == pytest.approx(chat.losses[0]["validation_after"], abs=1e-3)
    model = ComposedModel.load(tiny_directory, tmp_path / "registry", quantization="none", device="cpu")
    assert model.domains == ("chat", "math")
    assert model.route("abc").weights["chat"] >= 0.2


def test_stacks_of_a_recipe_without_earlier_ones_know_no_predecessor(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    run_curriculum(recipe(tiny_directory, earlier="none"), data, registry, tmp_path / "run", quiet)
    current = registry.snapshot().domain("math").current
    assert read_stack_metadata(registry.blob_path(current.digest)).predecessors == ()


def test_a_stopped_run_goes_on_and_ends_with_the_very_same_stacks(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path
) -> None:
    plan = recipe(tiny_directory)
    run_curriculum(plan, data, registry, tmp_path / "run", quiet)
    other = Registry(tmp_path / "other", create=True)
    again = tmp_path / "again"
    again.mkdir()
    (again / "chat.safetensors").write_bytes((tmp_path / "run" / "chat.safetensors").read_bytes())
    run_curriculum(plan, data, other, again, quiet)
    digests = [[h.current.digest for h in r.snapshot().domains.values()] for r in (registry, other)]
    assert digests[0] == digests[1]


def test_a_domain_that_never_helps_is_not_published(
    tiny_directory: Path, data: Path, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.inner_loop.learning_rate", lambda *_: 0.0)
    with pytest.raises(RuntimeError, match="chat: no step beat the zero-delta baseline"):
        run_curriculum(recipe(tiny_directory), data, registry, tmp_path / "run", quiet)
    assert registry.snapshot().domains == {}
    assert list((tmp_path / "run").iterdir()) == []


def test_selection_is_set_aside_and_does_not_depend_on_the_order_of_the_file() -> None:
    records = [Record(f"r{i:02}", "p", "a") for i in range(20)]
    train, selection = selection_split(records, 5)
    assert len(selection) == 5
    assert {r.id for r in train} | {r.id for r in selection} == {r.id for r in records}
    assert not {r.id for r in train} & {r.id for r in selection}
    assert selection_split(records[::-1], 5) == (train, selection)


def test_evaluating_without_a_router_says_what_to_run(
    tiny_directory: Path, data: Path, registry: Registry
) -> None:
    with pytest.raises(ConfigError, match="no router"):
        evaluate_modes(str(tiny_directory), "none", registry, data, report=quiet)


def test_missing_data_names_the_file(tiny_directory: Path, registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"chat/train\.jsonl"):
        run_curriculum(recipe(tiny_directory), tmp_path, registry, tmp_path / "run", quiet)
