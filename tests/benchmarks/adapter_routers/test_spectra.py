"""Arrow and SpectR tell what slow, obvious code tells, and Arrow what PEFT's does."""

from __future__ import annotations

from statistics import fmean
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.adapter_routers.contestants import spectral
from benchmarks.adapter_routers.spectra import Spectral, spectrum
from brainstacks.layers.packed_stack import StackTensors
from tests.benchmarks.adapter_routers.slow import coefficients, inputs, whole
from tests.tiny import random_stack, stack_config
from training.data.encoding import Example
from training.router.stacked_base import StackedBase

RULES = {"Arrow": Spectral.arrow, "SpectR": Spectral.spectr}
CPU = torch.device("cpu")


def test_a_spectrum_is_that_of_the_whole_matrix(stacks: dict[str, StackTensors]) -> None:
    found = spectrum(stacks["art"], 1, "v_proj")
    delta = whole(stacks["art"], 1, "v_proj")
    assert torch.allclose(
        found.norm(dim=-1)[: min(delta.shape)], torch.linalg.svdvals(delta)[: len(found)], atol=1e-5
    )
    assert torch.allclose(found.T @ found, delta.T @ delta, atol=1e-5)


@pytest.mark.parametrize("router", RULES)
@pytest.mark.parametrize("top", [1, 2])
def test_weights_are_the_mean_of_each_tokens_coefficients(
    router: str, top: int, stacked: StackedBase, stacks: dict[str, StackTensors], examples: list[Example]
) -> None:
    rule = RULES[router](list(stacks.values()), top, CPU)
    told = spectral(stacked, rule).believe([e.prompt for e in examples])
    for example, weights in zip(examples, told, strict=True):
        every = [
            coefficients(router, list(stacks.values()), layer, projection, x, top)
            for (layer, projection), rows in inputs(stacked, example.prompt).items()
            for x in rows
        ]
        assert list(weights) == list(stacks)
        assert list(weights.values()) == pytest.approx([fmean(c) for c in zip(*every, strict=True)], abs=1e-5)


def test_arrow_is_that_of_peft() -> None:
    peft = pytest.importorskip("peft.tuners.lora.arrow")
    stacks = {f"task_{i}": _steep(i) for i in range(4)}
    theirs = peft.ArrowLoraLinearLayer(
        32,
        SimpleNamespace(
            top_k=3,
            router_temperature=1.0,
            rng_seed=0,
            task_adapter_names=list(stacks),
            gks_adapter_names=[],
            use_gks=False,
        ),
    )
    part = "rounds.0.layers.0.q_proj"
    A = {name: _linear(stack.tensors[f"{part}.A"]) for name, stack in stacks.items()}
    B = {name: _linear(stack.tensors[f"{part}.B"]) for name, stack in stacks.items()}
    theirs.build_prototypes(A, B)
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    scaling = {name: stack.config.scaling for name, stack in stacks.items()}
    expected = theirs(x, A, B, nn.Identity(), scaling)
    found = Spectral.arrow(list(stacks.values()), 3, CPU)(0, 0, x)[0, :, 0]
    deltas = torch.stack([x[0] @ whole(stack, 0, "q_proj").T for stack in stacks.values()], 1)
    assert torch.allclose((found[..., None] * deltas).sum(1), expected[0], atol=1e-4)


def _steep(seed: int) -> StackTensors:
    """One whose largest direction their few power iterations find."""
    stack = random_stack(
        {"q_proj": (32, 32)}, seed, config=stack_config(experts=1, top_k=1, projections=("q_proj",))
    )
    for name, tensor in stack.tensors.items():
        if name.endswith("B"):
            tensor[:, 1] *= 0.01
    return stack


def _linear(weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    return linear
