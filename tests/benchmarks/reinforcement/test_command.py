"""The command trains a further round of a published stack once, and measures it on what nobody trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.reinforcement import __main__ as reinforcement
from benchmarks.reinforcement.bench import Bench
from brainstacks.base_model import identify_base
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack
from tests.benchmarks.trained import trained_registry
from tests.tiny import write_records
from training.recipe.recipe import load_recipe
from training.reinforce.stage import StageResult

STEPS = 2


@pytest.fixture
def records(tmp_path: Path) -> Path:
    for domain, answer in (("chat", "yes"), ("math", "#### 5")):
        for split, count in (("train", 40), ("validation", 4)):
            rows = [(f"{domain} {split} {i}", answer) for i in range(count)]
            write_records(tmp_path / "records" / domain / f"{split}.jsonl", rows)
    return tmp_path / "records"


@pytest.fixture
def recipe(tmp_path: Path, tiny_directory: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"base: {tiny_directory}\nquantization: none\n"
        "data: {max_tokens: 96, selection: 4, router: 4}\ndomains: [{name: chat}, {name: math}]\n"
    )
    return path


@pytest.fixture
def served(tmp_path: Path, tiny_directory: Path) -> Registry:
    """As the demo's: its stacks act on the response alone."""
    return trained_registry(tmp_path, identify_base(tiny_directory), applies="response")


@pytest.fixture
def bench(served: Registry, records: Path, recipe: Path, tmp_path: Path) -> Bench:
    return Bench(load_recipe(str(recipe)), "math", served, records, 8, tmp_path / "kept", "cpu")


def command(records: Path, recipe: Path, tmp_path: Path, *further: str) -> Any:
    arguments = ["--data", str(records), "--recipe", str(recipe), "--registry", str(tmp_path / "trained")]
    arguments += ["--run", str(tmp_path / "kept"), "--output", str(tmp_path / "results"), "--device", "cpu"]
    arguments += ["--steps", str(STEPS), "--drawn", "16", "--asked", "4", "--limit", "2", "--tokens", "8"]
    result = CliRunner().invoke(reinforcement.app, [*arguments, *further], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "results").glob("reinforcement-*.json")
    return json.loads(path.read_text())


def test_both_stages_are_trained_once_and_measured_as_trained_and_routed(
    served: Registry, records: Path, recipe: Path, tmp_path: Path
) -> None:
    # A rate and a rise at which preferences, of which a random base has none, are learnt in two steps.
    easy = ["--learning-rate", "0.02", "--max-nll-rise", "9"]
    document = command(records, recipe, tmp_path, *easy)
    assert set(document["stages"]) == {"dpo", "grpo"}
    assert document["stages"]["dpo"]["frozen"]
    for stage in document["stages"].values():
        for composition in ("as trained", "routed"):
            found = stage[composition]
            assert set(found["nll"]) == {"chat", "math"}
            assert found["shares"]["reward"]["before"]["count"] == 4
            assert found["preference_accuracy"]["count"] > 0
            if not stage["frozen"]:
                assert all(loss["difference"]["value"] == 0 for loss in found["nll"].values())
    changed = document["stages"]["dpo"]["as trained"]["nll"]["math"]["difference"]["value"]
    assert changed != 0
    steps = [path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("metrics.jsonl")]
    again = command(records, recipe, tmp_path, *easy)
    assert again["stages"] == document["stages"]
    assert [path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("metrics.jsonl")] == steps


def test_pairs_reject_wrong_answers_of_the_model_to_records_with_a_right_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = bench.of_domain.train[:4]
    texts = ["#### 5", "it is 7", "", "no number"]
    monkeypatch.setattr(bench, "answers", lambda *asked: texts)
    pairs = bench.read_pairs(bench.pairs("some", records))
    decode = bench.stacked.tokenizer.decode
    kept = [records[1], records[3]]
    assert [decode(pair.rejected.response, skip_special_tokens=True) for pair in pairs] == [
        texts[1],
        texts[3],
    ]
    assert [pair.example.prompt for pair in pairs] == [e.prompt for e in bench.encoded(kept)]
    monkeypatch.setattr(bench, "answers", lambda *asked: pytest.fail("they are kept"))
    assert bench.read_pairs(bench.pairs("some", records)) == pairs


def test_sums_that_measure_are_not_those_that_teach(bench: Bench) -> None:
    taught, measured = bench.sums(40), bench.sums(20, besides=40)
    prompts = [record.messages[0].content for record in (*taught, *measured)]
    assert len(set(prompts)) == 60
    assert prompts[0].startswith("Calculate ")


def test_a_stage_is_a_further_round_of_its_stack_alone(bench: Bench, served: Registry) -> None:
    """At zero deltas it computes what is served; with others it changes its own domain's rows only."""
    stack = load_stack(served.blob_path(bench.stacked.digests["math"]))
    first = {name.removeprefix("rounds.0."): tensor for name, tensor in stack.tensors.items()}
    result = StageResult(first, 1.0, 1.0, "", (), "dpo")
    nothing = StageResult({n: torch.zeros_like(t) for n, t in first.items()}, 1.0, 1.0, "", (), "dpo")
    examples = bench.encoded(bench.of_domain.validation[:2])
    weights = [{"chat": 1.0}, {"chat": 1.0, "math": 1.0}]
    without = bench.stacked.losses(examples, weights)
    assert bench.with_stage(nothing).losses(examples, weights) == pytest.approx(without)
    chat, math = bench.with_stage(result).losses(examples, weights)
    assert chat == pytest.approx(without[0])
    assert math != pytest.approx(without[1])
