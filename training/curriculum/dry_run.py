"""Say what a recipe will take on this machine, before any weight is fetched or trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from torch import nn

from brainstacks.base_files import locate
from brainstacks.checkpoint import plain_checkpoint
from brainstacks.errors import ConfigError
from training.curriculum.estimate import MemoryEstimate, RunSize, estimate, own_dtype, run_size
from training.recipe.recipe import Recipe
from training.rounds.compute import candidates, memory_of
from training.rounds.device import take_device


def dry_run(recipe: Recipe, console: Console, name: str = "auto") -> None:
    """Print the size of a run of `recipe`, and its memory against what the device `name` has.

    Raises:
        ConfigError: the base's configuration cannot be had; there is no such device.
        UnsupportedModel: the base cannot carry stacks.
    """
    device = take_device(name)
    model = empty_model(base_config(recipe.base))
    memory = {
        str(dtype).removeprefix("torch."): estimate(recipe, model, device, dtype)
        for dtype in candidates(model, own_dtype(recipe, model), recipe.compute, device)
    }
    show(run_size(recipe, model), memory, memory_of(device), device, console)


def base_config(base: str) -> Any:
    """The transformers configuration of `base`; of a hub id no weight is fetched.

    Raises:
        ConfigError: it can be neither found nor fetched.
        UnsupportedModel: as `brainstacks.base_files.locate`, for packaged bases and local files.
    """
    from transformers import AutoConfig

    local = base.startswith("packaged:") or base.endswith(".gguf") or Path(base).is_dir()
    try:
        return AutoConfig.from_pretrained(plain_checkpoint(locate(base)).directory if local else base)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the configuration of base {base!r} could not be read or fetched ({type(error).__name__}); give "
            "a local directory or a packaged base, or run this where the hub can be reached"
        ) from error


def empty_model(config: Any) -> nn.Module:
    """The model of `config` on the meta device: all its shapes, none of its weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def show(
    size: RunSize,
    memory: Mapping[str, MemoryEstimate],
    available: int,
    device: torch.device,
    console: Console,
) -> None:
    """Print the counts, and the bytes against the `available` ones of `device`.

    Args:
        memory: the name of a dtype that the run may compute in -> what it takes then.
    """
    table = Table(title=f"memory of {device}")
    table.add_column("computing in")
    for name in memory:
        table.add_column(name, justify="right")
    found = memory.values()
    for name in ("base", "frozen", "active", "null_space", "activations", "logits"):
        table.add_row(name.replace("_", " "), *(decimal(getattr(one, name)) for one in found))
    table.add_section()
    table.add_row("at most, in all", *(decimal(one.total) for one in found))
    table.add_row("the device has", *[decimal(available)] * len(memory))
    console.print(
        f"a round: {size.trained:,} parameters in training, {size.stored:,} kept, a file of "
        f"{decimal(size.round_file)}"
    )
    console.print(f"at most {size.rounds} rounds, {size.steps:,} steps, {size.tokens:,} tokens")
    console.print(table)
    if len(memory) > 1:
        console.print(f"which of {' and '.join(memory)} it is, a measurement decides when the run is started")
    features = next(iter(found)).router_features
    console.print(f"the router's training keeps features of {decimal(features)} in host memory")
    if max(one.total for one in found) > available:
        console.print(
            "It may not fit: turn on round.gradient_checkpointing, halve round.batch_size and double "
            "round.accumulation, lower data.max_tokens, or set compute: bfloat16 where that is less."
        )
