"""The training-step benchmark: contestants are equal where they must be, and PEFT's LoRA is ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import train_step
from benchmarks.experiments.parameters import lora_of, parameters
from benchmarks.step_times import AUTOCAST, PEFT
from brainstacks.base_model import BaseModel, load_base
from brainstacks.layers.hooks import CompositionHooks
from tests.tiny import stack_config
from training.recipe.settings import StackRecipe
from training.rounds.active_stack import ActiveStack


@pytest.mark.parametrize("shape", [(2, 4, 2), (3, 2, 2), (5, 1, 1)])
def test_parameters_are_those_of_an_active_stack(tiny_base: BaseModel, shape: tuple[int, int, int]) -> None:
    rank, experts, top_k = shape
    identity = tiny_base.identity
    found = parameters(StackRecipe(rank=rank, experts=experts, top_k=top_k), identity.dims, identity.layers)
    config = stack_config(rank=rank, experts=experts, top_k=top_k)
    active, silent = (ActiveStack(config, identity.dims, noise=noise) for noise in (True, False))
    idle = sum(d_in for d_in, _ in identity.dims.values()) * identity.layers if experts == 1 else 0
    assert found.total == sum(p.numel() for p in active.parameters()) - idle
    assert found.noise == sum(p.numel() for p in active.parameters()) - sum(
        p.numel() for p in silent.parameters()
    )


def test_the_lora_of_equal_parameters_is_the_nearest(tiny_base: BaseModel) -> None:
    identity = tiny_base.identity

    def count(rank: int) -> int:
        return parameters(StackRecipe(rank=rank, experts=1, top_k=1), identity.dims, identity.layers).total

    for wanted in (count(3), count(7) + 5, count(10) - 5):
        lora = lora_of(wanted, 16.0, identity.dims, identity.layers)
        assert abs(count(lora.rank) - wanted) <= min(
            abs(count(other) - wanted) for other in range(1, 20) if other != lora.rank
        )


def test_a_single_expert_gives_the_logits_of_pefts_rslora(tiny_base: BaseModel, tiny_directory: Path) -> None:
    pytest.importorskip("peft")
    lora = StackRecipe(rank=3, alpha=8.0, experts=1, top_k=1)
    torch.manual_seed(0)
    active = ActiveStack(stack_config(rank=3, alpha=8.0, experts=1, top_k=1), tiny_base.identity.dims).eval()
    with torch.no_grad():
        for up in active.up.values():
            up.normal_(std=0.1)
    tensors = active.export()
    ids = torch.arange(12)[None]
    hooks = CompositionHooks(tiny_base.sites)
    hooks.attach()
    with torch.no_grad(), hooks.composed(active):
        ours = tiny_base.model(ids, use_cache=False).logits
    plain = load_base(tiny_directory, quantization="none", device="cpu", dtype=torch.float32)
    wrapped = train_step.peft_lora(plain, lora).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parts = name.split(".")
                layer, projection = parts[parts.index("layers") + 1], parts[-4]
                parameter.copy_(tensors[f"layers.{layer}.{projection}.{'A' if 'lora_A' in name else 'B'}"])
        theirs = wrapped(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_every_contestant_steps_at_both_shapes(tiny_directory: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    flags = ["--base", str(tiny_directory), "--quantization", "none", "--device", "cpu", "--rounds", "2"]
    flags += ["--batch-size", "2", "--tokens", "12", "--output", str(tmp_path)]
    result = CliRunner().invoke(train_step.app, flags, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("train_step-*.json")
    assert str(tiny_directory) not in path.read_text()
    cases = json.loads(path.read_text())["cases"]
    assert [case["stack"]["rank"] for case in cases] == [2, 16]
    for case in cases:
        counts = case["trainable_parameters"]
        assert set(counts) == set(case["seconds_per_step"])
        assert max(counts.values()) <= 1.1 * min(counts.values())
        assert set(case["over_peers"]) == {PEFT, AUTOCAST}
        assert list(case["growth_per_frozen_stack"]) == ["1", "2", "4"]
    assert "growth per frozen stack" in result.output


def test_help_gives_a_quick_example() -> None:
    result = CliRunner().invoke(train_step.app, ["--help"])
    assert "python -m benchmarks.train_step " in " ".join(result.output.split())
