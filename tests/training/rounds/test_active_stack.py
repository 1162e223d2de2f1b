"""The stack in training: its gradients are those of the plain sum over experts, through frozen stacks too."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from brainstacks.base_identity import BaseIdentity
from brainstacks.layers.hooks import CompositionHooks, DeltaSource
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.layers.projections import find_sites, projection_dims
from brainstacks.stacks.tensors import load_stack
from tests.tiny import bank_of, plainly_composed, random_stack, stack_config, tiny_model, write_stack
from tests.training.examples import random_examples
from tests.training.rounds.active_stacks import CONFIG, DIMS, active_stack, exported_gradients
from training.data.batches import Batch, collate
from training.rounds.active_stack import ActiveStack
from training.rounds.layers_recomputed import layers_recomputed
from training.rounds.objective import response_nll


def with_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"rounds.0.{name}": tensor for name, tensor in tensors.items()}


def fused_loss(
    active: ActiveStack, batch: Batch, stacks: dict[str, StackTensors], *, recomputed: bool = False
) -> Tensor:
    """The mean loss under `stacks` and `active`, after its backward pass."""
    model = tiny_model().double()
    sites = find_sites(model)
    bound = bank_of(stacks, torch.float64).bind([dict.fromkeys(stacks, 1.0)])
    hooks = CompositionHooks(sites)
    hooks.attach()
    sources = (*([bound] if stacks else []), active)
    with layers_recomputed(model, recomputed), hooks.composed(*sources, responses=batch.responses):
        loss = response_nll(model, batch).mean()
        loss.backward()
    return loss.detach()


def frozen_stacks(count: int) -> dict[str, StackTensors]:
    config = stack_config(rank=4, alpha=4.0)
    return {str(i): random_stack(DIMS, i, rounds=1 + i % 2, config=config) for i in range(count)}


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_gradients_equal_the_plain_experts_through_frozen_stacks(frozen: int) -> None:
    batch = collate(random_examples(4))
    active = active_stack().double().eval()
    stacks = frozen_stacks(frozen)
    loss = fused_loss(active, batch, stacks)

    leaves = {n: t.detach().clone().requires_grad_() for n, t in with_prefix(active.export()).items()}
    plain = [(stack, 1.0) for stack in stacks.values()] + [(StackTensors(CONFIG, 1, leaves), 1.0)]
    model = tiny_model().double()
    with plainly_composed(model, plain):
        plain_loss = response_nll(model, batch).mean()
    plain_loss.backward()

    torch.testing.assert_close(loss, plain_loss.detach(), atol=1e-12, rtol=1e-12)
    for name, gradient in with_prefix(exported_gradients(active)).items():
        expected = leaves[name].grad
        assert expected is not None, name
        assert expected.abs().max() > 0, f"{name} learns nothing"
        scale = float(expected.abs().max())
        assert float((gradient - expected).abs().max()) <= 1e-10 * scale, name


@pytest.mark.parametrize("frozen", [False, True])
def test_a_round_that_applies_to_the_response_has_the_gradients_of_the_plain_one(frozen: bool) -> None:
    """Frozen stacks of both kinds beside it, and several examples in a row."""
    examples = [one for one in random_examples(6) if len(one.prompt) > 1]
    config = dataclasses.replace(CONFIG, applies="response")
    active = active_stack(config).double().eval()
    stacks = frozen_stacks(2) if frozen else {}
    if frozen:
        stacks["1"] = dataclasses.replace(
            stacks["1"], config=dataclasses.replace(stacks["1"].config, applies="response")
        )
    packed = fused_loss(active, collate([examples[:3], examples[3:]]), stacks)

    leaves = {n: t.detach().clone().requires_grad_() for n, t in with_prefix(active.export()).items()}
    tokens = sum(len(one.response) for one in examples)
    total = torch.zeros((), dtype=torch.float64)
    for one in examples:
        start = len(one.prompt) - 1
        kinds = {**stacks, "active": StackTensors(config, 1, leaves)}.values()
        plain = [(stack, 1.0, start if stack.config.applies == "response" else 0) for stack in kinds]
        model = tiny_model().double()
        with plainly_composed(model, plain):
            total = total + response_nll(model, collate([one])).sum() / tokens
    total.backward()

    torch.testing.assert_close(packed, total.detach(), atol=1e-12, rtol=1e-12)
    for name, gradient in with_prefix(exported_gradients(active)).items():
        torch.testing.assert_close(gradient, leaves[name].grad, atol=1e-12, rtol=1e-8)


def test_only_tokens_that_the_deltas_act_on_are_balanced() -> None:
    """What the gates would choose for a prompt that they never see has no part in the loss."""
    batch = collate(random_examples(4))
    found = []
    for applies in ("everywhere", "response"):
        config = dataclasses.replace(CONFIG, applies=applies)
        active = active_stack(config, up=0.0, noise=False).train()  # gates read the same
        acting = batch.segments.where(batch.responses, -1)
        segments = batch.segments if applies == "response" else acting
        active.begin(segments, batch.responses, batch.examples)
        model = tiny_model()
        hooks = CompositionHooks(find_sites(model))
        hooks.attach()
        with hooks.composed(active, responses=batch.responses):
            response_nll(model, batch)
        found.append(active.balance_sum())
    assert found[0] > 0
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("frozen", [0, 3])
def test_gradients_are_the_same_through_gradient_checkpointing_noise_and_all(frozen: int) -> None:
    batch = collate(random_examples(4))
    stacks = frozen_stacks(frozen)
    found = []
    for recomputed in (False, True):
        active = active_stack().double().train()
        active.begin(batch.segments, batch.responses, batch.examples)
        torch.manual_seed(1)
        loss = fused_loss(active, batch, stacks, recomputed=recomputed)
        active.balance_sum().detach()
        found.append((loss, {n: p.grad for n, p in active.named_parameters()}))
    (plain_loss, plain), (loss, recomputed_gradients) = found
    assert torch.equal(loss, plain_loss)
    for name, gradient in recomputed_gradients.items():
        expected = plain[name]
        assert gradient is not None, name
        assert expected is not None, name
        assert torch.equal(gradient, expected), name


def test_gradients_of_the_balance_loss_pass_through_gradient_checkpointing() -> None:
    batch = collate(random_examples(4))
    found = []
    for recomputed in (False, True):
        model = tiny_model()
        hooks = CompositionHooks(find_sites(model))
        hooks.attach()
        active = active_stack().train()
        active.begin(batch.segments, batch.responses, batch.examples)
        torch.manual_seed(1)
        with layers_recomputed(model, recomputed), hooks.composed(active):
            nll = response_nll(model, batch).sum()
            (nll + active.balance_sum()).backward()
        found.append(exported_gradients(active))
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, found[0][name], atol=1e-6, rtol=1e-5, msg=name)


def test_a_fresh_round_is_the_base_bit_for_bit_and_all_of_its_b_learns() -> None:
    model = tiny_model()
    hooks = CompositionHooks(find_sites(model))
    hooks.attach()
    active = active_stack(up=0.0).eval()
    ids = torch.arange(12)[None]
    base = tiny_model()(ids, use_cache=False).logits
    with hooks.composed(active):
        found = model(ids, use_cache=False).logits
    assert torch.equal(found, base)
    found.square().mean().backward()
    for name, parameter in active.up.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_noise_is_in_training_only_and_never_in_the_frozen_stacks() -> None:
    model = tiny_model()
    sites = find_sites(model)
    frozen = bank_of({"f": random_stack(projection_dims(sites), 1)}).bind([{"f": 1.0}])
    active = active_stack().train()
    active.begin(torch.zeros(1, 6, dtype=torch.long), torch.ones(1, 6, dtype=torch.bool), 1)
    x = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))

    def delta(source: DeltaSource) -> Tensor:
        (correction,) = source.corrections(0, 0, x)["q_proj"]
        return correction(torch.zeros(1, 6, 32))

    assert torch.equal(delta(frozen), delta(frozen))
    assert not torch.equal(delta(active), delta(active))
    active.eval()
    assert torch.equal(delta(active), delta(active))


def test_export_to_a_file_and_into_a_bank_gives_the_active_stacks_logits(tmp_path: Path) -> None:
    model = tiny_model()
    sites = find_sites(model)
    hooks = CompositionHooks(sites)
    hooks.attach()
    active = active_stack(stack_config(projections=("q_proj", "v_proj", "up_proj"))).eval()
    ids = torch.arange(10)[None]
    with torch.no_grad(), hooks.composed(active):
        trained = model(ids, use_cache=False).logits
    identity = BaseIdentity("tiny", "f" * 64, "llama", 2, projection_dims(sites), 32)
    stack = StackTensors(active.config, 1, with_prefix(active.export()))
    path = write_stack(tmp_path / "chat.safetensors", identity, "chat", stack)
    loaded = load_stack(path)
    bound = bank_of({"chat": loaded}).bind([{"chat": 1.0}])
    with torch.no_grad(), hooks.composed(bound):
        torch.testing.assert_close(model(ids, use_cache=False).logits, trained, atol=1e-5, rtol=1e-5)
    assert not any("noise" in name for name in loaded.tensors)


def test_a_training_forward_without_begin_is_an_error() -> None:
    active = active_stack().train()
    with pytest.raises(RuntimeError, match="begin"):
        active.corrections(0, 0, torch.zeros(1, 2, 32))


def test_a_round_that_starts_from_given_weights_has_them() -> None:
    tensors = active_stack().export()
    other = active_stack(seed=5)
    other.start_from(tensors)
    for name, tensor in other.export().items():
        assert torch.equal(tensor, tensors[name]), name


def test_weights_of_another_shape_cannot_be_started_from() -> None:
    with pytest.raises(ValueError, match="shape"):
        active_stack(stack_config(rank=1, experts=3)).start_from(active_stack().export())


def test_one_expert_is_a_plain_rslora_without_gate_noise_or_balance() -> None:
    config = stack_config(rank=4, alpha=4.0, experts=1, top_k=1)
    active = active_stack(config).train()
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    active.begin(torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 5, dtype=torch.bool), 1)
    (correction,) = active.corrections(0, 0, x)["v_proj"]
    found = correction(torch.zeros(1, 5, DIMS["v_proj"][1]))
    tensors = active.export()
    A, B = tensors["layers.0.v_proj.A"], tensors["layers.0.v_proj.B"]
    torch.testing.assert_close(found, 2.0 * x @ A.T @ B.T)
    assert float(active.balance_sum()) == 0.0


def test_dropout_is_on_what_the_factors_read_in_training_alone_and_the_gates_see_all() -> None:
    made = []
    for dropout in (0.0, 0.5):
        torch.manual_seed(0)
        made.append(ActiveStack(CONFIG, DIMS, noise=False, dropout=dropout))
    whole, dropped = made
    x = torch.randn(2, 5, DIMS["q_proj"][0])
    plain = whole.eval()._products(0, 0, x)
    assert torch.equal(dropped.eval()._products(0, 0, x), plain)
    A_rows, gate_rows, _ = dropped._rows(3)
    torch.manual_seed(1)
    found = dropped.train()._products(0, 0, x)
    torch.manual_seed(1)
    kept = torch.nn.functional.dropout(torch.ones_like(x), 0.5)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    expected = (kept * x) @ dropped.down["0_0"].T
    torch.testing.assert_close(found[..., :A_rows], expected)
    torch.testing.assert_close(found[..., A_rows:], plain[..., A_rows:])
    assert found.shape[-1] == A_rows + gate_rows
