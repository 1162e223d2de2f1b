"""A forward and backward on a GPU gives what the CPU gives, and the same bits twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.projections import find_sites
from tests.tiny import random_stack, tiny_model
from tests.training.examples import learnable_examples
from tests.training.rounds.active_stacks import DIMS, active_stack, exported_gradients
from training.data.batches import collate
from training.rounds.device import compute_repeatably
from training.rounds.layers_recomputed import layers_recomputed
from training.rounds.objective import response_nll, row_sums

pytestmark = pytest.mark.gpu


def trained(device: torch.device, *, noise: bool, recomputed: bool = False) -> dict[str, Tensor]:
    """Losses and gradients of a stack in training, on top of a frozen one, in float32 on the CPU."""
    model, batch = tiny_model().to(device), collate(learnable_examples(6))
    active = active_stack(noise=noise).to(device).train()
    bank = StackBank(device, torch.float32)
    bank.add("earlier", random_stack(DIMS, 5))
    hooks = CompositionHooks(find_sites(model))
    hooks.attach()
    there = batch.to(device)
    with layers_recomputed(model, recomputed), hooks.composed(bank.bind([{"earlier": 0.7}]), active):
        torch.manual_seed(3)
        active.begin(there.segments, there.responses, there.examples)
        nll = response_nll(model, there)
        (nll.mean() + active.balance_sum()).backward()
    found = {name: gradient.cpu() for name, gradient in exported_gradients(active.cpu()).items()}
    return {"losses": row_sums(nll.detach(), batch), **found}


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    compute_repeatably()
    yield
    torch.use_deterministic_algorithms(False)


def test_a_gpu_gives_what_the_cpu_gives_in_float32() -> None:
    expected = trained(torch.device("cpu"), noise=False)  # noise has another generator on each device
    for name, found in trained(torch.device("cuda"), noise=False).items():
        torch.testing.assert_close(found, expected[name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_gpu_gives_the_same_bits_twice_noise_and_all(recomputed: bool) -> None:
    first = trained(torch.device("cuda"), noise=True)
    for name, found in trained(torch.device("cuda"), noise=True, recomputed=recomputed).items():
        assert torch.equal(found, first[name]), name
