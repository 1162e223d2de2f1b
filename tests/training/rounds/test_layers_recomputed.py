"""Gradient checkpointing computes the same, keeps less, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.projections import find_sites
from tests.tiny import FAMILIES, bank_of, random_stack, tiny_model
from tests.training.examples import learnable_examples
from tests.training.rounds.active_stacks import DIMS, active_stack, exported_gradients
from training.data.batches import collate
from training.rounds.active_stack import ActiveStack
from training.rounds.layers_recomputed import layers_recomputed
from training.rounds.objective import response_nll


def trained(model: Any, frozen: int, recomputed: bool) -> tuple[float, int, ActiveStack]:
    """One noisy forward and backward on top of `frozen` stacks: loss, bytes that autograd kept, stack."""
    bank = bank_of({n: random_stack(DIMS, n) for n in range(frozen)})
    sources = [bank.bind([dict.fromkeys(range(frozen), 0.5)])] if frozen else []
    active, batch = active_stack().train(), collate(learnable_examples(4))
    hooks = CompositionHooks(find_sites(model))
    hooks.attach()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with layers_recomputed(model, recomputed), hooks.composed(*sources, active):
        torch.manual_seed(3)
        active.begin(batch.segments, batch.responses, batch.examples)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = response_nll(model, batch).mean() + active.balance_sum()
        torch.manual_seed(4)  # what is drawn again is what was drawn, not what comes next
        loss.backward()
        held = [place for place, group in hooks._groups.items() if group._input is not None]
        assert held == [], "an input keeps all that its layer recomputed"
    hooks.detach()
    return float(loss.detach()), sum(kept.values()), active


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_loss_and_gradients_are_the_same_bits(frozen: int) -> None:
    model = tiny_model()
    loss, kept, active = trained(model, frozen, recomputed=False)
    again, kept_again, other = trained(model, frozen, recomputed=True)
    assert again == loss
    expected = exported_gradients(active)
    assert all(gradient.abs().sum() > 0 for gradient in expected.values())
    for name, gradient in exported_gradients(other).items():
        assert torch.equal(gradient, expected[name]), name
    assert kept_again < kept / 3


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_every_family_has_layers_that_are_recomputed(family: str) -> None:
    model = tiny_model(family)
    loss, kept, _ = trained(model, 0, recomputed=False)
    again, kept_again, _ = trained(model, 0, recomputed=True)
    assert again == loss
    assert kept_again < kept / 3
