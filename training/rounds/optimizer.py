"""The optimiser and its schedule: torch's or bitsandbytes', and transformers'."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from brainstacks.errors import ConfigError
from training.recipe.settings import RoundConfig
from training.rounds.active_stack import ActiveStack

SMALL = 4096
"""Elements below which bitsandbytes keeps a tensor's states in 32 bits."""
BLOCK = 256
"""Elements that share a scale (float32) in each of its 8-bit states."""


def settled(config: RoundConfig, device: torch.device) -> RoundConfig:
    """`config` with the optimiser that `auto` takes on CUDA by its name: a run goes on with its own.

    On a CPU `auto` stays as it is, and means AdamW.
    """
    if config.optimizer == "auto" and device.type == "cuda":
        return dataclasses.replace(config, optimizer="paged_adamw_8bit")
    return config


def rated(active: ActiveStack, config: RoundConfig) -> list[dict[str, Any]]:
    """The parameters of `active`: factors, and at a rate of their own gates with their noise."""
    gates = config.learning_rate if config.gate_learning_rate is None else config.gate_learning_rate
    return [
        {"params": [*active.down.parameters(), *active.up.parameters()]},
        {"params": list(active.gates.parameters()), "lr": gates},
    ]


def make_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], config: RoundConfig, device: torch.device
) -> Any:
    """AdamW with decoupled decay; on CUDA, unless the recipe says otherwise, paged with 8-bit states.

    Args:
        parameters: as torch takes them, in groups or not.

    Raises:
        ConfigError: paged states were asked for on another device.
    """
    kind = settled(config, device).optimizer
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
    }
    if kind in ("auto", "adamw"):
        return torch.optim.AdamW(parameters, **settings)
    if kind == "paged_adamw_8bit" and device.type != "cuda":
        raise ConfigError(
            f"optimizer is paged_adamw_8bit, which needs CUDA, and the base is on {device.type}; "
            "set it to auto, adamw or adamw_8bit"
        )
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    return (PagedAdamW8bit if kind == "paged_adamw_8bit" else AdamW8bit)(parameters, **settings)


def restore(optimizer: Any, state: Mapping[str, Any]) -> None:
    """Load what `state_dict` gave, from the CPU.

    Of a paged optimiser bitsandbytes would put all states into device memory, where they need not fit.
    """
    if not getattr(optimizer, "is_paged", False):
        optimizer.load_state_dict(state)
        return
    optimizer.load_state_dict(state, move_to_device=False)
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if name in ("state1", "state2"):
                kept[name] = optimizer.get_state_buffer(parameter, dtype=value.dtype).copy_(value)
            elif isinstance(value, torch.Tensor):
                kept[name] = value.to(parameter.device)


def state_bytes(elements: Iterable[int], config: RoundConfig, device: torch.device) -> int:
    """Bytes of the optimiser's states for parameters of so many `elements` each."""
    if settled(config, device).optimizer in ("auto", "adamw"):
        return sum(8 * count for count in elements)
    return sum(8 * count if count < SMALL else 2 * (count + 4 * -(-count // BLOCK)) for count in elements)


def make_schedule(optimizer: Any, config: RoundConfig) -> Any:
    """A linear warm-up, then a cosine from the peak to a tenth of it."""
    from transformers import get_scheduler

    return get_scheduler(
        "cosine_with_min_lr",
        optimizer,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=config.steps,
        scheduler_specific_kwargs={"min_lr_rate": 0.1},
    )
