"""The optimiser and its schedule: torch's or bitsandbytes', and transformers'."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from brainstacks.errors import ConfigError
from training.recipe.settings import RoundConfig


def optimizer_kind(config: RoundConfig, device: torch.device) -> str:
    """`adamw` or `paged_adamw_8bit`: what the recipe says, and on `device` where it says `auto`."""
    if config.optimizer != "auto":
        return config.optimizer
    return "paged_adamw_8bit" if device.type == "cuda" else "adamw"


def make_optimizer(parameters: Iterable[nn.Parameter], config: RoundConfig, device: torch.device) -> Any:
    """AdamW with decoupled decay; on CUDA, unless the recipe says otherwise, paged with 8-bit states.

    Raises:
        ConfigError: 8-bit states were asked for on another device.
    """
    kind = optimizer_kind(config, device)
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
    }
    if kind == "adamw":
        return torch.optim.AdamW(parameters, **settings)
    if device.type != "cuda":
        raise ConfigError(
            f"optimizer is paged_adamw_8bit, which needs CUDA, and the base is on {device.type}; "
            "set it to auto or adamw"
        )
    from bitsandbytes.optim import PagedAdamW8bit

    return PagedAdamW8bit(parameters, **settings)


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
