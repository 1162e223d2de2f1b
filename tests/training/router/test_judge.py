"""An epoch is judged by the loss of what serving would compose, as its file would hold the network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from brainstacks.base_model import BaseModel
from brainstacks.config import MetaRouterConfig
from brainstacks.errors import ConfigError
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.routing.meta_router import MetaRouter
from brainstacks.routing.router import Router
from brainstacks.stacks.router_artifact import RouterMetadata
from tests.tiny import bank_of, random_stack
from tests.training.examples import random_examples
from training.router.calibration import calibration
from training.router.judge import Judge
from training.router.outcomes import Outcome, measure
from training.router.stacked_base import StackedBase

DOMAINS = ("a", "b")
CONFIG = MetaRouterConfig(
    domains=DOMAINS, token_dim=32, hidden_dim=16, floors={"a": 0.2}, gate_threshold=0.15, sequence_length=4
)


@pytest.fixture
def stacked(tiny_base: BaseModel) -> StackedBase:
    stacks = {d: random_stack(tiny_base.identity.dims, i, size=0.3) for i, d in enumerate(DOMAINS)}
    hooks = CompositionHooks(tiny_base.sites)
    hooks.attach()
    digests = {d: f"{i:064}" for i, d in enumerate(DOMAINS)}
    return StackedBase(tiny_base, tiny_base.chat_tokenizer(), hooks, bank_of(stacks), digests)


@pytest.fixture
def outcomes(stacked: StackedBase) -> list[Outcome]:
    return measure(stacked, [("a", e) for e in random_examples(8, seed=2)], (1.0, 0.5), 0.01)


def metadata(stacked: StackedBase) -> RouterMetadata:
    return RouterMetadata(CONFIG, dict(stacked.digests), stacked.base.identity.ref)


def judge(stacked: StackedBase, outcomes: list[Outcome], dtype: torch.dtype = torch.float32) -> Judge:
    return Judge(metadata(stacked), stacked, outcomes, torch.full((len(outcomes), 2), 0.3), dtype)


def network(seed: int = 3) -> MetaRouter:
    """One whose probabilities are spread to both sides of the gate."""
    torch.manual_seed(seed)
    made = MetaRouter(CONFIG)
    with torch.no_grad():
        made.out.weight.mul_(8)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_that_of_each_prompt_alone_through_the_saved_network_and_the_policy(
    stacked: StackedBase, outcomes: list[Outcome], dtype: torch.dtype
) -> None:
    trained = network()
    epoch = judge(stacked, outcomes, dtype).judged(3, trained)
    saved = MetaRouter(CONFIG)
    saved.load_state_dict({name: tensor.to(dtype) for name, tensor in trained.state_dict().items()})
    router = Router(metadata(stacked), saved.eval())
    nats, tokens, routes = 0.0, 0, set()
    rows: list[float] = []
    for one in (o.example for o in outcomes):
        (given,) = router.probabilities(stacked.base, [one.prompt])
        weights = {"a": max(given["a"], 0.2), "b": given["b"]}
        applied = {d: w for d, w in weights.items() if w > 0.15}
        nats += float(stacked.nll([one], [applied])[0])
        tokens += len(one.response)
        rows += [given["a"], given["b"]]
        routes.add(tuple(applied))
    assert len(routes) > 1
    assert epoch.routed == pytest.approx(nats / tokens, abs=1e-4)
    assert epoch.predicted.flatten().tolist() == pytest.approx(rows, abs=1e-4)
    assert epoch.bce == pytest.approx(
        float(F.binary_cross_entropy(epoch.predicted, torch.full((8, 2), 0.3))), abs=1e-5
    )


def test_the_network_kept_is_the_rounded_one_and_training_may_go_on(
    stacked: StackedBase, outcomes: list[Outcome]
) -> None:
    trained = network()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    epoch = judge(stacked, outcomes, torch.bfloat16).judged(1, trained)
    with torch.no_grad():
        trained.out.weight.add_(1.0)
    kept = epoch.router.network
    assert not kept.training
    for name, tensor in kept.state_dict().items():
        assert torch.equal(tensor, before[name].to(torch.bfloat16).float()), name


def test_metrics_weigh_every_answer_by_its_tokens(stacked: StackedBase, outcomes: list[Outcome]) -> None:
    judged = judge(stacked, outcomes)
    epoch = judged.judged(5, network())
    metrics = judged.metrics(epoch)
    tokens = [len(o.example.response) for o in outcomes]
    yardsticks = {
        "base": [o.losses[""] for o in outcomes],
        "ungated": [o.losses["a+b"] for o in outcomes],
        "best_single": [min(o.losses["a"], o.losses["b"]) for o in outcomes],
        "oracle": [min(o.loss, *o.losses.values()) for o in outcomes],
    }
    for name, losses in yardsticks.items():
        mean = sum(loss * n for loss, n in zip(losses, tokens, strict=True)) / sum(tokens)
        assert metrics[f"held_out_nll_{name}"] == pytest.approx(mean), name
        assert f"{name} {mean:.4f}" in judged.told(epoch)
    assert metrics["held_out_nll_routed"] == epoch.routed
    assert metrics["regret"] == pytest.approx(epoch.routed - metrics["held_out_nll_oracle"])
    assert metrics["epoch"] == 5
    measured = [weight for o in outcomes for weight in (o.weights["a"], o.weights["b"])]
    expected = calibration(epoch.predicted.flatten().tolist(), measured)
    assert (metrics["calibration_error"], metrics["brier"]) == (expected.error, expected.brier)
    assert all(type(value) in (int, float) for value in metrics.values())


def test_a_network_that_diverged_says_which_setting_to_lower(
    stacked: StackedBase, outcomes: list[Outcome]
) -> None:
    diverged = network()
    with torch.no_grad():
        diverged.out.weight.fill_(float("nan"))
    with pytest.raises(ConfigError, match=r"after epoch 2 .* lower router\.learning_rate"):
        judge(stacked, outcomes).judged(2, diverged)


def test_a_composition_that_overflows_is_refused(
    stacked: StackedBase, outcomes: list[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = judge(stacked, outcomes)
    monkeypatch.setattr(StackedBase, "losses", lambda self, examples, weights: [float("nan")] * len(examples))
    with pytest.raises(ConfigError, match="routed NLL is nan"):
        judged.judged(1, network())


def test_a_stack_newer_than_the_router_is_not_composed(stacked: StackedBase, outcomes: list[Outcome]) -> None:
    other = replace(metadata(stacked), stacks=dict.fromkeys(DOMAINS, "e" * 64))
    epoch = Judge(other, stacked, outcomes, torch.zeros(8, 2), torch.float32).judged(1, network())
    base = sum(o.losses[""] * len(o.example.response) for o in outcomes)
    assert epoch.routed == pytest.approx(base / sum(len(o.example.response) for o in outcomes), abs=1e-4)
