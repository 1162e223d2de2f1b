"""The balance loss: its formula, whatever a step is split into, and an even load in the end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from brainstacks.config import StackConfig
from brainstacks.layers.hooks import CompositionHooks, LowRank
from brainstacks.layers.projections import INPUT_GROUPS, find_sites
from tests.tiny import tiny_model
from tests.training.examples import random_examples
from tests.training.rounds.active_stacks import CONFIG, DIMS, active_stack, exported_gradients
from training.data.batches import Batch, collate
from training.rounds.active_stack import ActiveStack
from training.rounds.gating import Gating
from training.rounds.objective import response_nll


def balance_of(active: ActiveStack, *batches: Batch) -> Tensor:
    """L_aux over all tokens of `batches`, which a step may be split into."""
    model = tiny_model()
    hooks = CompositionHooks(find_sites(model))
    hooks.attach()
    active.train()
    total = torch.zeros(())
    for batch in batches:
        active.begin(batch.segments, batch.responses, batch.examples)
        with hooks.composed(active):
            response_nll(model, batch)
        total = total + active.balance_sum()
    return total / sum(int(batch.attention_mask.sum()) for batch in batches)


def test_the_balance_loss_is_its_formula_averaged_over_all_deltas() -> None:
    active = active_stack(up=0.0, noise=False)
    examples = random_examples(3)
    found = balance_of(active, collate(examples))
    gates = active.export()
    model = tiny_model()
    inputs: dict[tuple[int, str], Tensor] = {}
    sites = find_sites(model)
    for key, site in sites.items():
        site.module.register_forward_pre_hook(lambda m, args, k=key: inputs.__setitem__(k, args[0]))
    expected, tokens = 0.0, sum(map(len, examples))
    for example in examples:
        with torch.no_grad():
            response_nll(model, collate([example]))
        for layer, projection in sites:
            logits = inputs[layer, projection][0] @ gates[f"layers.{layer}.{projection}.gate"].T
            probability = logits.softmax(-1).mean(0)
            chosen = torch.zeros_like(logits).scatter(-1, logits.topk(2, dim=-1).indices, 1.0)
            value = 3 * float((probability * chosen.mean(0) / 2).sum())
            expected += len(example) / tokens * value / len(sites)
    assert len(sites) == 14
    assert float(found.detach()) == pytest.approx(expected, abs=1e-5)


def test_no_split_padding_or_packing_changes_the_balance_loss_or_its_gradient() -> None:
    examples = random_examples(6)
    batches = {
        "whole": [collate(examples)],
        "split": [collate(examples[:1]), collate(examples[1:4]), collate(examples[4:])],
        "packed": [collate([examples[:4], examples[4:]])],
    }
    found = {}
    for name, group in batches.items():
        active = active_stack(up=0.0, noise=False)
        loss = balance_of(active, *group)
        loss.backward()
        found[name] = (float(loss.detach()), exported_gradients(active))
    for name in ("split", "packed"):
        assert found[name][0] == pytest.approx(found["whole"][0], abs=1e-6), name
        for key, gradient in found[name][1].items():
            torch.testing.assert_close(gradient, found["whole"][1][key], atol=1e-7, rtol=1e-3)


def test_the_balance_loss_has_a_gradient_on_every_gate() -> None:
    active = active_stack(up=0.0)
    balance_of(active, collate(random_examples(3))).backward()
    for name, gradient in exported_gradients(active).items():
        if name.endswith("gate"):
            assert gradient.abs().max() > 0, name


def test_padding_is_not_balanced() -> None:
    active = active_stack(up=0.0, noise=False).train()
    x = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    active.begin(torch.tensor([[0, 0, -1, -1]]), torch.ones(1, 4, dtype=torch.bool), 1)
    active.corrections(0, 0, x)
    half = active.balance_sum()
    active.begin(torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool), 1)
    active.corrections(0, 0, x[:, :2])
    torch.testing.assert_close(half, active.balance_sum())


def test_a_collapsed_gate_rebalances() -> None:
    config = StackConfig(rank=1, experts=4, top_k=1, layers=1, projections=("q_proj",))
    torch.manual_seed(0)
    active = ActiveStack(config, {"q_proj": (16, 8)}).train()
    x = torch.randn(1, 200, 16, generator=torch.Generator().manual_seed(1))
    x[..., 0] = 1.0  # a constant feature through which one expert takes everything
    with torch.no_grad():
        active.gates["0_0"][0, 0] = 8.0
    optimizer = torch.optim.Adam(active.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        active.begin(torch.zeros(1, 200, dtype=torch.long), torch.ones(1, 200, dtype=torch.bool), 1)
        active.corrections(0, INPUT_GROUPS.index(("q_proj", "k_proj", "v_proj")), x)
        loss = active.balance_sum() / 200
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > 3.5, "all tokens go to one of four experts"
    assert losses[-1] < 1.2, "1.0 is an even load"


def test_soft_gates_take_all_experts_first_and_noise_anneals_but_what_is_measured_is_served() -> None:
    x = torch.randn(1, 6, DIMS["q_proj"][0], generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    active = ActiveStack(CONFIG, DIMS, gating=Gating(init=0.5, annealed=True, soft=0.25))
    torch.manual_seed(0)
    plain = ActiveStack(CONFIG, DIMS)
    rows = 3 * CONFIG.experts
    assert torch.equal(active.gates["0_0"][:rows], 0.5 * plain.gates["0_0"][:rows])
    assert torch.equal(active.gates["0_0"][rows:], plain.gates["0_0"][rows:])

    def used(progress: float) -> tuple[set[int], bool]:
        """Experts that tokens use, and whether two forwards of the same step differ."""
        active.at(progress)
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            active.begin(torch.zeros(1, 6, dtype=torch.long), torch.ones(1, 6, dtype=torch.bool), 1)
            (one,) = active.corrections(0, 0, x)["q_proj"]
            assert isinstance(one, LowRank)
            found.append(one.hidden)
        by_expert = found[0].unflatten(-1, (CONFIG.experts, CONFIG.rank)).abs().sum(-1) > 0
        return set(by_expert.sum(-1).flatten().tolist()), not torch.equal(*found)

    active.train()
    assert used(0.0) == ({CONFIG.experts}, False)
    assert float(active.balance_sum()) == 0.0
    assert used(0.25) == ({CONFIG.top_k}, True)
    assert float(active.balance_sum().detach()) > 0.0
    assert used(1.0) == ({CONFIG.top_k}, False)
    active.eval()
    assert used(0.0) == ({CONFIG.top_k}, False)
