"""The stack in training: its gradients are those of the plain sum over experts, through frozen stacks too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from brainstacks.config import StackConfig
from brainstacks.layers.hooks import CompositionHooks, DeltaSource
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.layers.projections import INPUT_GROUPS, find_sites, projection_dims
from brainstacks.stacks.artifact import BaseIdentity
from brainstacks.stacks.tensors import load_stack_tensors
from tests.tiny import bank_of, plainly_composed, random_stack, stack_config, tiny_model, write_stack
from tests.training.examples import random_examples
from training.active_stack import ActiveStack
from training.data import Batch, collate
from training.objective import response_nll

CONFIG = stack_config(rank=2, experts=3, top_k=2)
DIMS = projection_dims(find_sites(tiny_model()))


def active_stack(config: StackConfig = CONFIG, *, up: float = 0.3, seed: int = 0) -> ActiveStack:
    """A round for the tiny Llama whose B is not zero any more."""
    torch.manual_seed(seed)
    active = ActiveStack(config, DIMS)
    with torch.no_grad():
        for parameter in active.up.values():
            parameter.copy_(up * torch.randn(parameter.shape))
    return active


def with_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"rounds.0.{name}": tensor for name, tensor in tensors.items()}


def exported_gradients(active: ActiveStack) -> dict[str, Tensor]:
    """The gradients of `active`, in the layout of its export."""
    gradients = ActiveStack(active.config, DIMS)
    for holder, parameter in zip(gradients.parameters(), active.parameters(), strict=True):
        holder.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return gradients.export()


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_gradients_equal_the_plain_experts_through_frozen_stacks(frozen: int) -> None:
    model = tiny_model().double()
    sites = find_sites(model)
    batch = collate(random_examples(4))
    active = active_stack().double().eval()
    stacks = {str(i): random_stack(projection_dims(sites), i, rounds=1 + i % 2) for i in range(frozen)}

    bound = bank_of(stacks, torch.float64).bind([dict.fromkeys(stacks, 1.0)])
    sources = [bound] if stacks else []
    hooks = CompositionHooks(sites)
    hooks.attach()
    with hooks.composed(*sources, active):
        loss = response_nll(model, batch).mean()
    loss.backward()
    hooks.detach()

    leaves = {n: t.detach().clone().requires_grad_() for n, t in with_prefix(active.export()).items()}
    plain = [(stack, 1.0) for stack in stacks.values()] + [(StackTensors(CONFIG, 1, leaves), 1.0)]
    with plainly_composed(model, plain):
        plain_loss = response_nll(model, batch).mean()
    plain_loss.backward()

    torch.testing.assert_close(loss, plain_loss, atol=1e-6, rtol=1e-6)
    for name, gradient in with_prefix(exported_gradients(active)).items():
        expected = leaves[name].grad
        assert expected is not None, name
        assert expected.abs().max() > 0, f"{name} learns nothing"
        scale = float(expected.abs().max())
        assert float((gradient - expected).abs().max()) <= 1e-5 * scale + 1e-10, name


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
    active.begin(torch.ones(1, 6, dtype=torch.bool))
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
    loaded = StackTensors(active.config, 1, load_stack_tensors(path))
    bound = bank_of({"chat": loaded}).bind([{"chat": 1.0}])
    with torch.no_grad(), hooks.composed(bound):
        torch.testing.assert_close(model(ids, use_cache=False).logits, trained, atol=1e-5, rtol=1e-5)
    assert not any("noise" in name for name in loaded.tensors)


# --- the balance loss ----------------------------------------------------------------------------


def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)


def balance_of(active: ActiveStack, batch: Batch) -> Tensor:
    model = tiny_model()
    hooks = CompositionHooks(find_sites(model))
    hooks.attach()
    active.train()
    active.begin(batch.attention_mask)
    with hooks.composed(active):
        response_nll(model, batch)
    return active.balance_loss()


def test_the_balance_loss_is_its_formula_averaged_over_all_deltas(monkeypatch: pytest.MonkeyPatch) -> None:
    no_noise(monkeypatch)
    active = active_stack(up=0.0)
    batch = collate(random_examples(3))
    found = balance_of(active, batch)
    gates = active.export()
    model = tiny_model()
    values: list[float] = []
    inputs: dict[tuple[int, str], Tensor] = {}
    sites = find_sites(model)
    for key, site in sites.items():
        site.module.register_forward_pre_hook(lambda m, args, k=key: inputs.__setitem__(k, args[0]))
    with torch.no_grad():
        response_nll(model, batch)
    for layer, projection in sites:
        x = inputs[layer, projection][batch.attention_mask]  # [tokens, d_in]
        logits = x @ gates[f"layers.{layer}.{projection}.gate"].T
        probability = logits.softmax(-1).mean(0)
        chosen = torch.zeros_like(logits).scatter(-1, logits.topk(2, dim=-1).indices, 1.0)
        values.append(3 * float((probability * chosen.mean(0) / 2).sum()))
    assert len(values) == 14
    assert float(found.detach()) == pytest.approx(sum(values) / 14, abs=1e-5)


def test_the_balance_loss_has_a_gradient_on_every_gate() -> None:
    active = active_stack(up=0.0)
    balance_of(active, collate(random_examples(3))).backward()
    for name, gradient in exported_gradients(active).items():
        if name.endswith("gate"):
            assert gradient.abs().max() > 0, name


def test_padding_is_not_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    no_noise(monkeypatch)
    active = active_stack(up=0.0)
    x = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    active.begin(torch.tensor([[True, True, False, False]]))
    active.corrections(0, 0, x)
    half = active.balance_loss()
    active.begin(torch.ones(1, 2, dtype=torch.bool))
    active.corrections(0, 0, x[:, :2])
    torch.testing.assert_close(half, active.balance_loss())


def test_a_collapsed_gate_rebalances() -> None:
    config = StackConfig(rank=1, experts=4, top_k=1, layers=1, projections=("q_proj",))
    torch.manual_seed(0)
    active = ActiveStack(config, {"q_proj": (16, 8)}).train()
    x = torch.randn(1, 200, 16, generator=torch.Generator().manual_seed(1))
    x[..., 0] = 1.0  # a constant feature through which one expert takes everything
    with torch.no_grad():
        active.down["0_0"][4, 0] = 8.0
    optimizer = torch.optim.Adam(active.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        active.begin(torch.ones(1, 200, dtype=torch.bool))
        active.corrections(0, INPUT_GROUPS.index(("q_proj", "k_proj", "v_proj")), x)
        loss = active.balance_loss()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > 3.5, "all tokens go to one of four experts"
    assert losses[-1] < 1.2, "1.0 is an even load"


def test_a_training_forward_without_begin_is_an_error() -> None:
    active = active_stack().train()
    with pytest.raises(RuntimeError, match="begin"):
        active.corrections(0, 0, torch.zeros(1, 2, 32))
