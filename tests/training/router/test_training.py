"""The router learns what was measured, and the epoch that composes best is the one that is kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from brainstacks.base_model import BaseModel
from brainstacks.config import MetaRouterConfig
from brainstacks.errors import ConfigError
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.stacks.router_artifact import RouterMetadata
from training.data.batches import TOKENS
from training.data.encoding import Example
from training.recipe.settings import RouterRecipe
from training.router.outcomes import Outcome
from training.router.stacked_base import StackedBase, Weights
from training.router.training import corner_losses, expected_nll, fit, loss, targets


def outcome(i: int, domain: str, weights: dict[str, float]) -> Outcome:
    """A prompt of its domain's own four tokens."""
    generator = torch.Generator().manual_seed(i)
    low = 0 if domain == "a" else 4
    prompt = torch.randint(low, low + 4, (4 + i % 5,), generator=generator).tolist()
    losses = {"": 1.0, "a": 0.75, "b": 0.75, "a+b": 0.75} | {domain: 0.5}
    greedy = "a+b" if i % 4 == 0 else domain
    return Outcome(domain, Example(f"o{i}", tuple(prompt), (1, 2)), losses, weights, 0.5, greedy)


def outcomes(start: int, count: int) -> list[Outcome]:
    made = []
    for i in range(start, start + count):
        domain = "ab"[i % 2]
        made.append(outcome(i, domain, {"a": float(domain == "a"), "b": float(domain == "b")}))
    return made


@dataclass(frozen=True)
class Priced(StackedBase):
    """No model runs: a row's loss is `price` nats per token for each unit of weight, and 1."""

    price: float = 0.0

    def losses(
        self, examples: Sequence[Example], weights: Sequence[Weights], tokens: int = TOKENS
    ) -> list[float]:
        pairs = zip(examples, weights, strict=True)
        return [(1.0 + self.price * sum(w.values())) * len(e.response) for e, w in pairs]


@dataclass(frozen=True)
class OwnHelps(Priced):
    """No model runs: a row's loss falls by the weight of its prompt's own domain, and grows by the other."""

    def losses(
        self, examples: Sequence[Example], weights: Sequence[Weights], tokens: int = TOKENS
    ) -> list[float]:
        signs = [{"a": -0.25, "b": 0.25} if e.prompt[0] < 4 else {"a": 0.25, "b": -0.25} for e in examples]
        rows = zip(examples, weights, signs, strict=True)
        return [(1.0 + sum(s[d] * x for d, x in w.items())) * len(e.response) for e, w, s in rows]


def priced(base: BaseModel, price: float = 0.0, kind: type[Priced] = Priced) -> tuple[RouterMetadata, Priced]:
    digests = {"a": "1" * 64, "b": "2" * 64}
    bank = StackBank(base.device, base.dtype)
    stacked = kind(base, base.chat_tokenizer(), CompositionHooks(base.sites), bank, digests, price=price)
    config = MetaRouterConfig(domains=("a", "b"), token_dim=32, hidden_dim=16)
    return RouterMetadata(config, digests, base.identity.ref), stacked


# --- what is learnt ------------------------------------------------------------------------------


def test_the_target_mixes_the_measured_weight_with_the_label() -> None:
    one = outcome(0, "a", {"a": 0.7, "b": 0.4})
    config = MetaRouterConfig(domains=("b", "a"), token_dim=32)
    assert targets([one], config, RouterRecipe(label_prior=0.2)).tolist() == [
        pytest.approx([0.8 * 0.4, 0.8 * 0.7 + 0.2])
    ]
    assert (
        targets([one, one], config, RouterRecipe(label_prior=0.0)).tolist() == [pytest.approx([0.4, 0.7])] * 2
    )


def test_the_loss_is_bce_and_a_penalty_on_indecision() -> None:
    logits = torch.tensor([[0.0, 5.0]])
    wanted = torch.tensor([[1.0, 1.0]])
    recipe = RouterRecipe(margin=0.3, margin_coefficient=0.05, nll_coefficient=0.0)
    bce = (math.log(2) + math.log1p(math.exp(-5))) / 2
    free = torch.zeros(1, 2, 2)
    assert float(loss(logits, wanted, free, recipe)) == pytest.approx(bce + 0.05 * (0.3 + 0.0) / 2, abs=1e-6)


def test_the_loss_charges_what_the_probabilities_are_expected_to_compose() -> None:
    domains = ("b", "a", "c")
    names = [()] + [c for n in (1, 2, 3) for c in itertools.combinations(domains, n)]
    losses = {"+".join(name): 1.0 + i / 7 for i, name in enumerate(names)}
    one = Outcome("a", Example("o", (1,), (2,)), losses, dict.fromkeys(domains, 0.0), 0.5, "a")
    corners = corner_losses([one, one], MetaRouterConfig(domains=domains, token_dim=32))
    p = torch.tensor([[0.3, 0.9, 0.0], [1.0, 0.0, 1.0]])
    chance = [
        math.prod(q if d in name else 1 - q for d, q in zip(domains, p[0].tolist(), strict=True))
        for name in names
    ]
    by_hand = sum(c * x for c, x in zip(chance, losses.values(), strict=True))
    expected = expected_nll(p, corners)
    assert expected.tolist() == pytest.approx([by_hand, losses["b+c"]])
    logits = p.logit(eps=1e-6)
    bare, charged = RouterRecipe(nll_coefficient=0.0), RouterRecipe(nll_coefficient=3.0)
    more = loss(logits, p, corners, charged) - loss(logits, p, corners, bare)
    assert float(more) == pytest.approx(3 * float(expected.mean()), abs=1e-4)


def test_fitting_learns_to_tell_the_domains_apart(tiny_base: BaseModel) -> None:
    metadata, stacked = priced(tiny_base, kind=OwnHelps)
    recipe = RouterRecipe(epochs=12, patience=12, batch_size=8, learning_rate=1e-2, seed=1)
    network, metrics = fit(
        metadata, stacked, outcomes(0, 48), {}, outcomes(48, 16), recipe, report=lambda _: None
    )
    assert metrics["held_out_bce"] < 0.4, "a constant answer has ln 2"
    assert metrics["calibration_error"] < 0.25
    assert not network.training
    assert (metrics["train_prompts"], metrics["held_out_prompts"]) == (48, 16)
    assert metrics["greedy_as_good"] == 0.75
    assert metrics["greedy_cost"] == pytest.approx(0.25 * 0.25), "a quarter lose 0.75 - 0.5 nats"


def test_prompts_without_outcomes_teach_what_a_domain_looks_like(tiny_base: BaseModel) -> None:
    metadata, stacked = priced(tiny_base, 0.0)
    measured, held_out = outcomes(0, 2), outcomes(100, 16)
    more = {d: [o.example for o in outcomes(4, 80) if o.domain == d] for d in "ab"}
    recipe = RouterRecipe(epochs=12, patience=12, batch_size=8, learning_rate=1e-2, seed=1)
    known: list[float] = []
    for unmeasured in ({}, more):
        lines: list[str] = []
        _, metrics = fit(metadata, stacked, measured, unmeasured, held_out, recipe, report=lines.append)
        assert metrics["unmeasured_prompts"] == sum(map(len, unmeasured.values()))
        known.append(min(told(lines, "held-out BCE")))
    assert known[1] < 0.5 < known[0]


# --- which epoch is kept -------------------------------------------------------------------------


def run(base: BaseModel, price: float, epochs: int, patience: int) -> tuple[dict[str, Any], list[str]]:
    """Both stacks are always wanted, and cost `price`."""
    metadata, stacked = priced(base, price)
    wanted = [outcome(i, "ab"[i % 2], {"a": 1.0, "b": 1.0}) for i in range(24)]
    recipe = RouterRecipe(
        epochs=epochs, patience=patience, batch_size=8, learning_rate=5e-3, label_prior=0.0, dropout=0.0
    )
    lines: list[str] = []
    _, metrics = fit(metadata, stacked, wanted[:16], {}, wanted[16:], recipe, report=lines.append)
    return metrics, lines


def told(lines: Sequence[str], name: str) -> list[float]:
    return [float(line.split(f"{name} ")[1].split(",")[0].split(" ")[0]) for line in lines]


def test_the_epoch_kept_has_the_lowest_routed_loss_and_not_the_lowest_bce(tiny_base: BaseModel) -> None:
    metrics, lines = run(tiny_base, price=0.5, epochs=4, patience=4)
    bce, routed = told(lines, "held-out BCE"), told(lines, "routed NLL")
    assert bce == sorted(bce, reverse=True), "the longer it trains, the better it matches the targets"
    assert routed == sorted(routed), "and the worse it composes"
    assert metrics["epoch"] == 1
    assert metrics["held_out_nll_routed"] == pytest.approx(routed[0], abs=1e-4)
    for name, values in (("held_out_bce", bce), ("held_out_nll_routed", routed)):
        assert [point[name] for point in metrics["history"]] == pytest.approx(values, abs=1e-4)
    assert metrics["held_out_bce"] == pytest.approx(bce[0], abs=1e-4)


def test_where_the_stacks_help_the_same_training_keeps_the_last_epoch(tiny_base: BaseModel) -> None:
    metrics, lines = run(tiny_base, price=-0.5, epochs=4, patience=1)
    assert metrics["epoch"] == len(lines) == 4
    assert metrics["held_out_nll_routed"] == pytest.approx(min(told(lines, "routed NLL")), abs=1e-4)


def test_training_stops_after_so_many_epochs_without_a_lower_routed_loss(tiny_base: BaseModel) -> None:
    _, lines = run(tiny_base, price=0.5, epochs=20, patience=3)
    assert len(lines) == 4


def test_a_learning_rate_that_diverges_is_refused(tiny_base: BaseModel) -> None:
    metadata, stacked = priced(tiny_base, 0.0)
    recipe = RouterRecipe(learning_rate=1e30)
    with pytest.raises(ConfigError, match=r"lower router\.learning_rate"):
        fit(metadata, stacked, outcomes(0, 8), {}, outcomes(8, 4), recipe, report=lambda _: None)
