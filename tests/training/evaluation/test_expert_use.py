"""Expert use: equal to counting token by token, and nothing but counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from brainstacks.base_model import BaseModel
from brainstacks.errors import ConfigError
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.layers.projections import find_sites
from brainstacks.stacks.registry import Registry
from tests.tiny import bank_of, plainly_composed, publish_stack, random_stack, stack_config
from tests.training.examples import random_examples
from training.data.encoding import Example
from training.evaluation.expert_use import ExpertUse, load_expert_use, measure_expert_use, save_expert_use
from training.router.stacked_base import StackedBase

EXAMPLES = random_examples(7, seed=3)


def stacked_of(base: BaseModel, registry: Registry, directory: Path, **stacks: StackTensors) -> StackedBase:
    hooks = CompositionHooks(base.sites)
    hooks.attach()
    digests = {
        domain: publish_stack(registry, base.identity, domain, stack, directory).digest
        for domain, stack in stacks.items()
    }
    return StackedBase(base, base.chat_tokenizer(), hooks, bank_of(stacks), digests)


def plain_counts(base: BaseModel, stack: StackTensors, examples: list[Example]) -> Counter[tuple[int, ...]]:
    """(round, layer, projection, expert) -> dispatches; token by token, each example alone."""
    found: Counter[tuple[int, ...]] = Counter()
    inputs: dict[tuple[int, str], torch.Tensor] = {}

    def keep(at: tuple[int, str], x: torch.Tensor) -> None:
        inputs[at] = x[0]

    sites = find_sites(base.model)
    handles = [
        site.module.register_forward_hook(lambda module, args, output, at=at: keep(at, args[0]))
        for at, site in sites.items()
    ]
    for example in examples:
        with torch.no_grad(), plainly_composed(base.model, [(stack, 1.0)]):
            base.model(input_ids=torch.tensor([[*example.prompt, *example.response]]))
        for n in range(stack.rounds):
            for (layer, projection), rows in inputs.items():
                gate = stack.tensors[f"rounds.{n}.layers.{layer}.{projection}.gate"]
                i = stack.config.projections.index(projection)
                for x in rows:
                    logits = (gate @ x).tolist()
                    best = sorted(range(len(logits)), key=lambda e: -logits[e])[: stack.config.top_k]
                    found.update((n, layer, i, e) for e in best)
    for handle in handles:
        handle.remove()
    return found


def test_shares_are_those_of_counting_token_by_token(
    tiny_base: BaseModel, registry: Registry, tmp_path: Path
) -> None:
    stack = random_stack(tiny_base.identity.dims, seed=1, rounds=2)
    counts = plain_counts(tiny_base, stack, EXAMPLES)
    stacked = stacked_of(tiny_base, registry, tmp_path, chat=stack)
    (use,) = measure_expert_use(stacked, registry, {"chat": EXAMPLES}, batch_size=3).values()
    tokens = sum(len(e) for e in EXAMPLES)
    assert use.tokens == tokens
    assert use.shares.shape == (2, 2, 7, 3)
    for place in torch.cartesian_prod(*map(torch.arange, use.shares.shape)).tolist():
        assert use.shares[tuple(place)] == pytest.approx(counts[tuple(place)] / (2 * tokens)), place


def test_every_stack_is_measured_alone_and_changes_nothing(
    tiny_base: BaseModel, registry: Registry, tmp_path: Path
) -> None:
    dims = tiny_base.identity.dims
    narrow = random_stack(dims, 2, config=stack_config(projections=("q_proj", "down_proj")))
    stacks = {"chat": random_stack(dims, 1), "math": narrow, "silent": random_stack(dims, 3)}
    stacked = stacked_of(tiny_base, registry, tmp_path, **stacks)
    weights = [{"math": 1.0}] * len(EXAMPLES)
    before = stacked.nll(EXAMPLES, weights)
    together = measure_expert_use(stacked, registry, {"chat": EXAMPLES, "math": EXAMPLES, "silent": []})
    assert list(together) == ["chat", "math"]
    assert together["math"].projections == ("q_proj", "down_proj")
    alone = measure_expert_use(stacked, registry, {"math": EXAMPLES})
    assert torch.equal(together["math"].shares, alone["math"].shares)
    assert torch.equal(stacked.nll(EXAMPLES, weights), before)


def test_a_collapsed_gate_is_seen(tiny_base: BaseModel, registry: Registry, tmp_path: Path) -> None:
    stack = random_stack(tiny_base.identity.dims, seed=1, config=stack_config(top_k=1))
    gates = {n: torch.zeros_like(t) for n, t in stack.tensors.items() if n.endswith("q_proj.gate")}
    collapsed = StackTensors(stack.config, 1, {**stack.tensors, **gates})
    stacked = stacked_of(tiny_base, registry, tmp_path, chat=collapsed)
    use = measure_expert_use(stacked, registry, {"chat": EXAMPLES})["chat"]
    assert use.shares[0, :, 0].amax(-1).tolist() == [1.0, 1.0]
    assert (use.shares[0, :, 1:].amax(-1) < 1.0).any()


def test_the_file_gives_back_the_very_shares(tmp_path: Path) -> None:
    shares = torch.rand(1, 2, 3, 4, dtype=torch.float64)
    use = ExpertUse("d" * 64, 5, ("q_proj", "k_proj", "v_proj"), shares)
    save_expert_use(tmp_path / "use.json", {"chat": use})
    back = load_expert_use(tmp_path / "use.json")["chat"]
    assert torch.equal(back.shares, shares)
    assert (back.digest, back.tokens, back.projections) == (use.digest, use.tokens, use.projections)


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"chat": {"digest": "d"}})])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "use.json").write_text(text)
    with pytest.raises(ConfigError, match=r"use\.json"):
        load_expert_use(tmp_path / "use.json")
