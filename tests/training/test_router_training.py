"""The router learns what was measured: its held-out loss falls, and its target is what it says."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from brainstacks.base_model import BaseModel
from brainstacks.config import MetaRouterConfig
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks
from training.composition import Composed
from training.outcomes import Outcome
from training.recipe import RouterRecipe
from training.router_training import fit, loss, target


def outcome(i: int, domain: str, weights: dict[str, float]) -> Outcome:
    """A prompt of its domain's own four tokens."""
    random = torch.Generator().manual_seed(i)
    low = 0 if domain == "a" else 4
    prompt = torch.randint(low, low + 4, (4 + i % 5,), generator=random).tolist()
    return Outcome(f"o{i}", domain, tuple(prompt), {"": 1.0, domain: 0.5}, weights, 0.5, domain)


def outcomes(start: int, count: int) -> list[Outcome]:
    made = []
    for i in range(start, start + count):
        domain = "ab"[i % 2]
        made.append(outcome(i, domain, {"a": float(domain == "a"), "b": float(domain == "b")}))
    return made


def composed(base: BaseModel) -> Composed:
    hooks = CompositionHooks(base.sites)
    return Composed(base, base.chat_tokenizer(), hooks, StackBank(base.device, base.dtype), {})


def test_the_target_mixes_the_measured_weight_with_the_label() -> None:
    one = outcome(0, "a", {"a": 0.7, "b": 0.4})
    assert target(one, ("a", "b", "c"), 0.2) == pytest.approx([0.8 * 0.7 + 0.2, 0.8 * 0.4, 0.0])
    assert target(one, ("b", "a"), 0.0) == [0.4, 0.7]


def test_the_loss_is_bce_and_a_penalty_on_indecision() -> None:
    logits = torch.tensor([[0.0, 5.0]])
    targets = torch.tensor([[1.0, 1.0]])
    recipe = RouterRecipe(margin=0.3, margin_coefficient=0.05)
    bce = (math.log(2) + math.log1p(math.exp(-5))) / 2
    assert float(loss(logits, targets, recipe)) == pytest.approx(bce + 0.05 * (0.3 + 0.0) / 2, abs=1e-6)


def test_fitting_lowers_the_held_out_loss_and_keeps_the_best_epoch(tiny_base: BaseModel) -> None:
    config = MetaRouterConfig(domains=("a", "b"), token_dim=32, hidden_dim=16)
    recipe = RouterRecipe(epochs=12, batch_size=8, learning_rate=1e-2, label_prior=0.2, seed=1)
    lines: list[str] = []
    network, metrics = fit(
        config, composed(tiny_base), outcomes(0, 48), outcomes(48, 16), recipe, lines.append
    )
    reported = [float(line.split("held-out BCE ")[1].split(",")[0]) for line in lines]
    assert len(reported) == 12
    assert metrics["held_out_bce"] == pytest.approx(min(reported), abs=1e-4)
    assert metrics["held_out_bce"] < 0.35, "a constant answer has ln 2"
    assert not network.training
    assert (metrics["train_prompts"], metrics["held_out_prompts"]) == (48, 16)
    assert metrics["greedy_equals_exhaustive"] == 1.0


def test_the_network_returned_is_the_one_of_the_best_epoch(tiny_base: BaseModel) -> None:
    from training.router_training import _features

    config = MetaRouterConfig(domains=("a", "b"), token_dim=32, hidden_dim=16, sequence_length=4)
    held_out, whole = outcomes(48, 8), composed(tiny_base)
    recipe = RouterRecipe(epochs=4, batch_size=8, learning_rate=5e-3, seed=2)
    network, metrics = fit(config, whole, outcomes(0, 16), held_out, recipe, report=lambda _: None)
    values = []
    for one in held_out:
        features = _features(config, whole, one)
        assert features.shape == (min(4, len(one.prompt)), 32)
        logits = network(features[None], torch.ones(1, len(features), dtype=torch.bool))
        expected = torch.tensor([target(one, config.domains, recipe.label_prior)])
        values.append(float(F.binary_cross_entropy_with_logits(logits, expected).detach()))
    assert sum(values) / len(values) == pytest.approx(metrics["held_out_bce"], abs=1e-4)
