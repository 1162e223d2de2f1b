"""Weights by token, projection and layer reach the deltas that they are of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.adapter_routers.kept_losses import KeptLosses
from benchmarks.adapter_routers.spectra import Spectral
from benchmarks.adapter_routers.varying import Varying, by_thirds
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.layers.projections import find_sites
from tests.benchmarks.adapter_routers.slow import coefficients
from tests.tiny import bank_of, plain_delta, plain_logits
from training.data.encoding import Example
from training.router.stacked_base import StackedBase


@pytest.fixture
def kept(tmp_path: Path) -> KeptLosses:
    return KeptLosses(tmp_path / "losses.jsonl", {})


def slow_nats(stacked: StackedBase, stacks: dict[str, StackTensors], example: Example) -> float:
    """Arrow's own form: every token of every projection has coefficients of its own."""

    def routed(at: tuple[int, str]) -> object:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            total = output.clone()
            for t, x in enumerate(args[0][0]):
                own = coefficients("Arrow", list(stacks.values()), *at, x, 1)
                for stack, c in zip(stacks.values(), own, strict=True):
                    if c:
                        total[0, t] += c * plain_delta(stack, *at, x[None])[0]
            return total

        return add

    sites = find_sites(stacked.base.model)
    handles = [site.module.register_forward_hook(routed(at)) for at, site in sites.items()]  # type: ignore[arg-type]
    logits = plain_logits(stacked.base.model, [*example.prompt, *example.response])
    for handle in handles:
        handle.remove()
    predicted = logits[len(example.prompt) - 1 : -1]
    return float(F.cross_entropy(predicted, torch.tensor(example.response), reduction="sum"))


def test_per_token_every_projection_is_routed_by_its_own_input(
    stacked: StackedBase, stacks: dict[str, StackTensors], examples: list[Example], kept: KeptLosses
) -> None:
    rule = Spectral.arrow(list(stacks.values()), 1, torch.device("cpu"))
    found = kept.varied(stacked, examples, [["Arrow"]] * 3, lambda rows: Varying.of(stacked, len(rows), rule))
    expected = [slow_nats(stacked, stacks, example) for example in examples]
    assert found == pytest.approx(expected, abs=1e-3)


def test_factors_of_thirds_multiply_the_weights_of_their_layers(
    stacked: StackedBase, examples: list[Example], kept: KeptLosses
) -> None:
    weights = [{"art": 0.5}, {"zoology": 0.8, "art": 0.3}, {}]
    plain = stacked.losses(examples, weights)
    assert kept.varied(
        stacked, examples, [1, 1, 1], lambda rows: by_thirds(stacked, [weights[i] for i in rows], (1, 1, 1))
    ) == pytest.approx(plain, abs=1e-4)
    # Of two layers, the first is in the lower third, the second in the middle one.
    halved = by_thirds(stacked, weights, (1.0, 0.5, 9.0))
    assert [float(halved.coefficients(layer, 0, torch.empty(0))[1, 0, 0, 0]) for layer in (0, 1)] == (
        pytest.approx([0.8, 0.4])
    )
    (upper,) = kept.varied(
        stacked, examples[:1], [2], lambda rows: by_thirds(stacked, [weights[0]], (1.0, 0.0, 1.0))
    )
    assert upper != pytest.approx(plain[0], abs=1e-3)


def test_stacks_that_act_on_the_response_alone_do_so_with_varying_weights_too(
    stacked: StackedBase, stacks: dict[str, StackTensors], examples: list[Example], kept: KeptLosses
) -> None:
    late = {
        domain: replace(stack, config=replace(stack.config, applies="response"))
        for domain, stack in stacks.items()
    }
    acting_late = replace(stacked, bank=bank_of(late))
    weights = [{"art": 0.5, "zoology": 1.0}] * 3
    found = kept.varied(
        acting_late, examples, [0] * 3, lambda rows: by_thirds(acting_late, weights[: len(rows)], (1, 1, 1))
    )
    assert found == pytest.approx(acting_late.losses(examples, weights), abs=1e-4)
    assert found != pytest.approx(stacked.losses(examples, weights), abs=1e-2)
