"""One round: what helps is kept, what never helps or diverges is not."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.layers.projections import find_sites, projection_dims
from tests.tiny import bank_of, random_stack, stack_config, tiny_model
from tests.training.examples import learnable_examples, random_examples
from training.inner_loop import RoundConfig, RoundResult, evaluate, learning_rate, train_round

CONFIG = stack_config(rank=2, experts=2, top_k=1)


def train(
    *, frozen: list[StackTensors] | None = None, **options: Any
) -> tuple[RoundResult, Any, CompositionHooks]:
    model = tiny_model()
    sites = find_sites(model)
    hooks = CompositionHooks(sites)
    hooks.attach()
    bank = bank_of(dict(enumerate(frozen or [])))
    round_config = RoundConfig(
        **{"steps": 24, "batch_size": 4, "learning_rate": 5e-3, "warmup_steps": 2, "eval_every": 8, **options}
    )
    result = train_round(
        model,
        hooks,
        CONFIG,
        projection_dims(sites),
        learnable_examples(16),
        learnable_examples(6, seed=1),
        round_config,
        [bank.bind([dict.fromkeys(bank.keys, 1.0)])] if frozen else [],
        report=lambda _: None,
    )
    return result, model, hooks


def validation_under(result: RoundResult, model: Any, hooks: CompositionHooks) -> float:
    tensors = {f"rounds.0.{n}": t for n, t in (result.tensors or {}).items()}
    bank = bank_of({"new": StackTensors(CONFIG, 1, tensors)})
    return evaluate(model, hooks, learnable_examples(6, seed=1), bank.bind([{"new": 1.0}]))


def test_a_round_learns_and_its_snapshot_is_the_best_evaluation() -> None:
    result, model, hooks = train()
    assert result.best < result.baseline - 0.5
    assert result.best == min(h["val_loss"] for h in result.history)
    assert [h["step"] for h in result.history] == [8, 16, 24]
    assert validation_under(result, model, hooks) == pytest.approx(result.best, abs=1e-4)


def test_the_base_is_untouched_and_nothing_stays_composed() -> None:
    _, model, _ = train(steps=2)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, tiny_model()(ids).logits)
    assert all(p.grad is None for p in model.parameters())


def test_a_round_learns_on_top_of_a_frozen_stack_which_stays_as_it_is() -> None:
    stack = random_stack(projection_dims(find_sites(tiny_model())), 5, size=0.2)
    before = {name: tensor.clone() for name, tensor in stack.tensors.items()}
    result, _, _ = train(frozen=[stack])
    assert result.best < result.baseline - 0.5
    for name, tensor in stack.tensors.items():
        assert torch.equal(tensor, before[name]), name


def test_the_same_seed_gives_the_same_tensors_and_another_one_others() -> None:
    tensors = [train(steps=4, eval_every=4, seed=seed)[0].tensors for seed in (3, 3, 4)]
    first, again, other = (t["layers.0.q_proj.A"] for t in tensors if t is not None)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("rate", [float("inf"), 1e30])
def test_a_round_that_diverges_leaves_nothing_to_freeze_and_stops(rate: float) -> None:
    result, _, _ = train(learning_rate=rate, warmup_steps=0, eval_every=4)
    assert result.tensors is None
    assert result.best == result.baseline
    assert len(result.history) == 1


def test_a_round_that_never_helps_leaves_nothing_and_stops_when_its_patience_ends() -> None:
    result, _, _ = train(learning_rate=0.0, eval_every=1, patience=3)
    assert result.tensors is None
    assert [h["val_loss"] for h in result.history] == [result.baseline] * 3


def test_a_spike_stops_the_round_and_the_snapshot_before_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([2.0, 1.5, 1.59, 1.61, 1.0])
    monkeypatch.setattr("training.inner_loop.evaluate", lambda *_, **__: next(values))
    result, _, _ = train(eval_every=1)
    assert [h["val_loss"] for h in result.history] == [1.5, 1.59, 1.61]
    assert (result.best, result.baseline) == (1.5, 2.0)
    assert result.tensors is not None


def test_nan_in_an_evaluation_loses_to_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([2.0, 1.5, math.nan, 1.0])
    monkeypatch.setattr("training.inner_loop.evaluate", lambda *_, **__: next(values))
    result, _, _ = train(eval_every=1)
    assert result.best == 1.5
    assert len(result.history) == 2


def test_an_evaluation_is_token_weighted_and_does_not_depend_on_its_batches() -> None:
    model = tiny_model()
    hooks = CompositionHooks(find_sites(model))
    hooks.attach()
    examples = random_examples(7)
    found = [evaluate(model, hooks, examples, batch_size=size) for size in (1, 3, 16)]
    assert found == pytest.approx([found[0]] * 3, abs=1e-5)
    each = [evaluate(model, hooks, [e]) * len(e.response) for e in examples]
    assert found[0] == pytest.approx(sum(each) / sum(len(e.response) for e in examples), abs=1e-5)


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    config = RoundConfig(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == max(rates) == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0.1)
