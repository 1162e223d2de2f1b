"""Which optimiser a recipe gets where, what its states take, and that they go on from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from torch import Tensor, nn

from brainstacks.errors import ConfigError
from tests.training.rounds.active_stacks import active_stack
from training.recipe.settings import RoundConfig
from training.rounds.optimizer import (
    SMALL,
    make_optimizer,
    make_schedule,
    rated,
    restore,
    settled,
    state_bytes,
)
from training.runs import checkpoint
from training.runs.stored import flatten, unflatten

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPES = ((70, 64), (8, 100), (64, 64))
"""Two of them of `SMALL` elements or more; one does not come out even in blocks."""


def parameters(device: str = "cpu", shapes: Iterable[tuple[int, int]] = SHAPES) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random).to(device)) for shape in shapes]


def steps(numbers: range, weights: list[nn.Parameter], optimizer: Any, schedule: Any) -> None:
    for number in numbers:
        random = torch.Generator().manual_seed(number)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=random).to(weight.device)
        optimizer.step()
        schedule.step()


def states(optimizer: Any) -> list[dict[str, Tensor]]:
    return [
        {name: tensor for name, tensor in kept.items() if name.startswith(("state", "absmax", "exp"))}
        for kept in optimizer.state.values()
    ]


def test_auto_is_adamw_on_a_cpu_and_paged_with_8_bits_on_cuda_by_name() -> None:
    auto = RoundConfig()
    assert settled(auto, CPU) is auto
    assert settled(auto, CUDA).optimizer == "paged_adamw_8bit"
    said = RoundConfig(optimizer="adamw_8bit")
    assert settled(said, CUDA) is said
    for config in (auto, RoundConfig(optimizer="adamw")):
        assert type(make_optimizer(parameters(), config, CPU)) is torch.optim.AdamW


def test_gates_and_noise_have_a_rate_of_their_own_through_the_whole_schedule() -> None:
    active = active_stack()
    for given, expected in ((None, 1e-3), (4e-3, 4e-3)):
        config = RoundConfig(learning_rate=1e-3, gate_learning_rate=given, warmup_steps=2, steps=9)
        optimizer = make_optimizer(rated(active, config), config, CPU)
        schedule = make_schedule(optimizer, config)
        factors, gates = optimizer.param_groups
        assert {id(p) for p in gates["params"]} == {id(p) for p in active.gates.values()}
        assert len(factors["params"]) + len(gates["params"]) == len(list(active.parameters()))
        for _ in range(9):
            optimizer.step()
            schedule.step()
            assert gates["lr"] / factors["lr"] == pytest.approx(expected / 1e-3)


def test_paged_states_are_refused_on_a_cpu_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"paged_adamw_8bit, which needs CUDA.* cpu; .*adamw or adamw_8bit"):
        make_optimizer(parameters(), RoundConfig(optimizer="paged_adamw_8bit"), CPU)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_the_states_take_the_bytes_that_are_estimated_and_small_tensors_keep_32_bits(name: Any) -> None:
    weights, config = parameters(), RoundConfig(optimizer=name)
    optimizer = make_optimizer(weights, config, CPU)
    steps(range(1), weights, optimizer, make_schedule(optimizer, config))
    found = states(optimizer)
    if name == "adamw_8bit":
        wide = [kept["state1"].dtype == torch.float32 for kept in found]
        assert wide == [weight.numel() < SMALL for weight in weights] == [False, True, False]
    taken = sum(tensor.nbytes for kept in found for tensor in kept.values())
    assert taken == state_bytes((weight.numel() for weight in weights), config, CPU)


@pytest.mark.parametrize(
    ("name", "place"),
    [("adamw_8bit", "cpu"), pytest.param("paged_adamw_8bit", "cuda", marks=pytest.mark.gpu)],
)
def test_8_bit_states_go_on_from_a_checkpoint_bit_for_bit(tmp_path: Path, name: Any, place: str) -> None:
    config, device = RoundConfig(optimizer=name, steps=9), torch.device(place)
    straight = parameters(place, (*SHAPES, (400, 300)))  # the last one is large enough to be paged
    optimizer = make_optimizer(straight, config, device)
    schedule = make_schedule(optimizer, config)
    steps(range(4), straight, optimizer, schedule)
    tensors, skeleton = flatten(optimizer.state_dict())
    checkpoint.save(tmp_path / "step-4", tensors, {"optimizer": skeleton})
    resumed = [nn.Parameter(weight.detach().clone()) for weight in straight]
    steps(range(4, 9), straight, optimizer, schedule)

    found = checkpoint.load(tmp_path / "step-4")
    assert found is not None
    again = make_optimizer(resumed, config, device)
    rest = make_schedule(again, config)
    restore(again, unflatten(found.tensors, found.state["optimizer"]))
    rest.load_state_dict({**schedule.state_dict(), "last_epoch": 4, "_step_count": 5})
    steps(range(4, 9), resumed, again, rest)
    for weight, other in zip(straight, resumed, strict=True):
        assert torch.equal(weight, other)
    for kept, others in zip(states(optimizer), states(again), strict=True):
        assert all(torch.equal(kept[name], others[name]) for name in kept)


class Paged(AdamW8bit):  # type: ignore[misc]
    """Pages as bitsandbytes does on CUDA, by its own mark on a tensor."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.is_paged = True

    def get_state_buffer(self, p: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        buffer = torch.zeros_like(p, dtype=dtype)
        buffer.is_paged = True  # type: ignore[attr-defined]
        return buffer

    def prefetch_state(self, p: Tensor) -> None:
        assert self.state[p]["state1"].is_paged


def test_paged_states_are_paged_again_after_a_resume() -> None:
    config, weights, resumed = RoundConfig(), parameters(), parameters()
    optimizer, again = Paged(weights), Paged(resumed)
    steps(range(3), weights, optimizer, make_schedule(optimizer, config))
    tensors, skeleton = flatten(optimizer.state_dict())
    restore(again, unflatten({name: tensor.clone() for name, tensor in tensors.items()}, skeleton))
    for kept, others in zip(states(optimizer), states(again), strict=True):
        assert others["state1"].is_paged  # type: ignore[attr-defined]
        assert others["state2"].is_paged  # type: ignore[attr-defined]
        assert all(torch.equal(kept[name], others[name]) for name in kept)
    steps(range(3, 4), resumed, again, make_schedule(again, config))
