"""A stack in training for the tiny Llama, and its gradients by the names of its export."""

from __future__ import annotations

import torch
from torch import Tensor

from brainstacks.config import StackConfig
from brainstacks.layers.projections import find_sites, projection_dims
from tests.tiny import stack_config, tiny_model
from training.rounds.active_stack import ActiveStack

CONFIG = stack_config(rank=4, alpha=4.0, experts=3, top_k=2)  # its scaling, 2, is exact in any dtype
DIMS = projection_dims(find_sites(tiny_model()))


def active_stack(
    config: StackConfig = CONFIG, *, up: float = 0.3, seed: int = 0, noise: bool = True
) -> ActiveStack:
    """A round for the tiny Llama whose B is not zero any more."""
    torch.manual_seed(seed)
    active = ActiveStack(config, DIMS, noise=noise)
    with torch.no_grad():
        for parameter in active.up.values():
            parameter.copy_(up * torch.randn(parameter.shape))
    return active


def exported_gradients(active: ActiveStack) -> dict[str, Tensor]:
    """The gradients of `active`, in the layout of its export."""
    gradients = ActiveStack(active.config, DIMS, noise=active._noisy)
    for holder, parameter in zip(gradients.parameters(), active.parameters(), strict=True):
        holder.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return gradients.export()
