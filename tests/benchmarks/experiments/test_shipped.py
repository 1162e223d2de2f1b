"""The registry and the LoRA that it is compared with have equal parameters, and saw the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.experiments import shipped
from brainstacks.base_model import identify_base
from brainstacks.errors import ConfigError
from brainstacks.stacks.registry import Registry
from tests.tiny import publish_stack, random_stack, write_router
from training.recipe.recipe import load_recipe


def test_the_shipped_registry_meets_a_lora_that_saw_the_same_domains(
    tiny_directory: Path, data: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "base": str(tiny_directory),
                "quantization": "none",
                "data": {"max_tokens": 96, "selection": 4},
                "stack": {"rank": 2, "experts": 3, "top_k": 2, "applies": "response"},
                "round": {"steps": 3, "batch_size": 2, "learning_rate": 5e-3, "warmup_steps": 1},
                "domains": [{"name": name, "licence": "CC0"} for name in ("chat", "math")],
            }
        )
    )
    identity, registry = identify_base(tiny_directory), Registry(tmp_path / "registry", create=True)
    for seed, domain in enumerate(("chat", "math")):
        publish_stack(registry, identity, domain, random_stack(identity.dims, seed, size=0.3), tmp_path)
    registry.publish_router(write_router(tmp_path / "router.safetensors", registry, identity))
    flags = [*("--data", str(data), "--recipe", str(recipe), "--registry", str(tmp_path / "registry"))]
    flags += [*("--run", str(tmp_path / "run"), "--output", str(tmp_path / "results"))]
    result = CliRunner().invoke(shipped.app, flags, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (file,) = (tmp_path / "results").glob("*.json")
    found = json.loads(file.read_text())
    assert set(found["validation_nll"]) == {"base", "shipped, ungated", shipped.ROUTED, shipped.LORA}
    assert found["settings"]["steps"] == 3
    counts = found["trainable_parameters"].values()
    assert max(counts) <= 1.1 * min(counts)
    shown = file.with_suffix(".md").read_text()
    assert "It acts on prompt and response, and a stack of the recipe on the response alone." in shown
    assert "Its peak learning rate, 0.0004, was given" in shown
    assert "MoE-LoRA 3 x r2, top 2, on the response alone, alpha" in shown
    for text in (file.read_text(), file.with_suffix(".md").read_text()):
        assert str(tmp_path) not in text


@pytest.mark.parametrize("change", [{"steps": 9}, {"max_rounds": 2}])
def test_a_recipe_in_which_domains_do_not_weigh_alike_is_refused(change: dict[str, Any]) -> None:
    plan = load_recipe("demo")
    first = dataclasses.replace(plan.domains[0], **change)
    with pytest.raises(ConfigError, match="chat: with steps of its own, or several rounds"):
        shipped.settings_of(dataclasses.replace(plan, domains=(first, *plan.domains[1:])), 1e-3)


def test_the_lora_trains_as_the_recipe_says_a_stack_does() -> None:
    plan = load_recipe("demo")
    careful = dataclasses.replace(plan, round=dataclasses.replace(plan.round, accumulation=2, clip=0.5))
    taken = shipped.settings_of(careful, 1e-3).round(plan.round.steps, 1e-3, seed=17)
    assert (taken.accumulation, taken.clip, taken.learning_rate) == (2, 0.5, 1e-3)
    same = ("steps", "batch_size", "warmup_steps", "weight_decay", "betas", "eval_every", "seed")
    assert all(getattr(taken, name) == getattr(plan.round, name) for name in same)
