"""Hooks that see an input group as a whole change nothing but what they are told to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.layers.group_hooks import GroupHooks
from brainstacks.layers.projections import INPUT_GROUPS, find_sites
from tests.tiny import FAMILIES, plain_logits, tiny_model

IDS = [5, 80, 33, 2, 101]


class Scaled:
    """Adds a multiple of each output to it, and notes what it was asked for."""

    def __init__(self, by: float) -> None:
        self.by = by
        self.seen: list[tuple[str, int, int]] = []

    def before(self, layer: int, group: int, x: Tensor) -> None:
        self.seen.append(("before", layer, group))

    def add(self, layer: int, group: int, outputs: Sequence[Tensor]) -> None:
        self.seen.append(("add", layer, group))
        assert len(outputs) == len(INPUT_GROUPS[group])
        for output in outputs:
            output.mul_(1 + self.by)


@torch.no_grad()
def logits(model: object) -> Tensor:
    return plain_logits(model, IDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_projection_of_every_family_gets_its_deltas_once(family: str) -> None:
    model, hooked = tiny_model(family), tiny_model(family)
    for site in find_sites(model).values():
        site.module.register_forward_hook(lambda module, args, output: output * 1.5)
    hooks, deltas = GroupHooks(find_sites(hooked)), Scaled(0.5)
    hooks.attach()
    with hooks.adding(deltas):
        torch.testing.assert_close(logits(hooked), logits(model))
    assert deltas.seen == [
        (what, layer, group) for layer in range(2) for group in range(4) for what in ("before", "add")
    ]


def test_without_deltas_the_base_is_itself_bit_for_bit() -> None:
    model = tiny_model()
    plain = logits(model)
    hooks = GroupHooks(find_sites(model))
    hooks.attach()
    assert torch.equal(logits(model), plain)
    with hooks.adding(Scaled(0.5)):
        assert not torch.equal(logits(model), plain)
    assert torch.equal(logits(model), plain)


def test_detached_hooks_leave_no_trace() -> None:
    model = tiny_model()
    names = {name: set(vars(module)) for name, module in model.named_modules()}
    hooks = GroupHooks(find_sites(model))
    hooks.attach()
    hooks.detach()
    assert {name: set(vars(module)) for name, module in model.named_modules()} == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in find_modules(model))


def find_modules(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [site.module for site in find_sites(model).values()]


def test_a_decoder_that_gives_a_group_two_inputs_is_refused(tiny_base: BaseModel) -> None:
    hooks = GroupHooks(tiny_base.sites)
    hooks.attach()
    x = torch.ones(1, 3, 32)
    with hooks.adding(Scaled(0.5)):
        tiny_base.sites[0, "q_proj"].module(x)
        with pytest.raises(RuntimeError, match="k_proj was given another input than q_proj"):
            tiny_base.sites[0, "k_proj"].module(x.clone())
