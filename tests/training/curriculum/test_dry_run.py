"""What a recipe will take is said without a weight, and what cannot be had is refused by name."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from brainstacks.errors import ConfigError, UnsupportedModel
from tests.tiny import tiny_config
from training.curriculum.dry_run import base_config, dry_run, empty_model, show
from training.curriculum.estimate import estimate, run_size
from training.recipe.recipe import Recipe, recipe_from

CPU = torch.device("cpu")


@pytest.fixture
def weightless(tmp_path: Path) -> Path:
    """A directory with a configuration, and nothing else."""
    tiny_config().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def recipe(base: str | Path, **changes: Any) -> Recipe:
    domains = [{"name": "chat", "licence": "MIT"}, {"name": "code", "licence": "MIT"}]
    return recipe_from({"base": str(base), "domains": domains, "max_rounds": 2, **changes})


def test_a_run_s_size_and_memory_are_printed_for_a_base_without_weights(weightless: Path) -> None:
    out = StringIO()
    dry_run(recipe(weightless), Console(file=out, width=120))
    model = empty_model(base_config(str(weightless)))
    assert f"{run_size(recipe(weightless), model).trained:,} parameters in training" in out.getvalue()
    assert "at most 4 rounds, 1,600 steps, 3,276,800 tokens" in out.getvalue()
    assert "the device has" in out.getvalue()
    assert "may not fit" not in out.getvalue()
    assert "`rl:`" not in out.getvalue()


def test_stages_of_rl_are_said_not_to_be_counted(weightless: Path) -> None:
    out = StringIO()
    domains = [{"name": "chat"}, {"name": "code", "rl": {"method": "dpo"}}]
    dry_run(recipe(weightless, domains=domains), Console(file=out, width=120))
    assert "not counted in what follows: the stages of `rl:` of code" in out.getvalue()


def test_one_domain_is_estimated_on_top_of_what_is_served_with_its_time_and_its_router_s(
    weightless: Path,
) -> None:
    out = StringIO()
    served = {"chat": 2, "law": 1}
    dry_run(recipe(weightless), Console(file=out, width=120), domain="code", served=served)
    assert "at most 2 rounds, 800 steps" in out.getvalue()
    assert "a router of 3 domains" in out.getvalue()
    assert "training, in all" in out.getvalue()
    with pytest.raises(ConfigError, match="the recipe has no domain 'law'"):
        dry_run(recipe(weightless), Console(file=out, width=120), domain="law", served=served)


def test_what_is_served_takes_memory_of_its_own(weightless: Path) -> None:
    model, made = empty_model(base_config(str(weightless))), recipe(weightless)
    alone, on_top = (estimate(made, model, CPU, torch.float32, earlier) for earlier in (0, 3))
    assert on_top.frozen - alone.frozen == 3 * run_size(made, model).stored * 4
    assert on_top.activations > alone.activations


def test_a_run_that_needs_more_than_there_is_says_what_to_change(weightless: Path) -> None:
    model, made, out = empty_model(base_config(str(weightless))), recipe(weightless), StringIO()
    memory = estimate(made, model, CPU, torch.float32)
    show(run_size(made, model), {"float32": memory}, memory.total - 1, CPU, Console(file=out, width=120))
    assert "It may not fit: turn on round.gradient_checkpointing" in out.getvalue()


def test_where_a_measurement_will_decide_both_dtypes_are_told(weightless: Path) -> None:
    def columns(**changes: str) -> str:
        out = StringIO()
        dry_run(recipe(weightless, **changes), Console(file=out, width=120))
        return next(line for line in out.getvalue().splitlines() if "computing in" in line)

    auto = columns()
    assert "bfloat16" in auto
    assert "float32" in auto
    assert "bfloat16" not in columns(compute="float32")
    assert "float32" not in columns(compute="bfloat16")
    assert "bfloat16" not in columns(quantization="none")


def test_the_model_of_a_configuration_has_shapes_and_no_weights(weightless: Path) -> None:
    model = empty_model(base_config(str(weightless)))
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_hub_base_that_cannot_be_reached_is_refused_with_the_ways_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"base 'no-one/no-model' could not be read or fetched.*directory"):
        dry_run(recipe("no-one/no-model"), Console(file=StringIO()))


def test_a_directory_or_package_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"no config\.json"):
        base_config(str(tmp_path))
    with pytest.raises(UnsupportedModel, match="no packaged base"):
        base_config("packaged:nothing")
