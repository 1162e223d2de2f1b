"""Say what a recipe will take on this machine, before any weight is fetched or trained."""

from __future__ import annotations

import dataclasses
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
from training.curriculum.estimate import (
    MemoryEstimate,
    RunSize,
    estimate,
    frozen_rounds_on,
    own_dtype,
    run_size,
)
from training.curriculum.pace import Times, measure_pace, times
from training.progress import duration, working
from training.recipe.recipe import Recipe
from training.rounds.compute import candidates, memory_of
from training.rounds.device import take_device


def dry_run(
    recipe: Recipe,
    console: Console,
    name: str = "auto",
    domain: str | None = None,
    served: Mapping[str, int] | None = None,
) -> None:
    """Print the size of a run of `recipe`, its memory against what the device `name` has, and its time.

    Args:
        domain: the one that `stack` is to train; None: the whole curriculum.
        served: domain -> rounds of what a registry serves.

    Raises:
        ConfigError: the base's configuration cannot be had; there is no such device, or no such domain.
        UnsupportedModel: the base cannot carry stacks.
    """
    device = take_device(name)
    others = {d: rounds for d, rounds in (served or {}).items() if d != domain}
    plan, earlier = (recipe, 0) if domain is None else (_alone(recipe, domain), sum(others.values()))
    domains = len(recipe.domains) if domain is None else len(others) + 1
    config = base_config(recipe.base)
    model = empty_model(config)
    dtypes = candidates(model, own_dtype(recipe, model), recipe.compute, device)
    memory = {_name(dtype): estimate(plan, model, device, dtype, earlier) for dtype in dtypes}
    staged = [d.name for d in plan.domains if d.rl]
    if staged:
        console.print(f"not counted in what follows: the stages of `rl:` of {', '.join(staged)}")
    show(run_size(plan, model), memory, memory_of(device), device, console)
    most = frozen_rounds_on(plan, earlier)
    frozen = most if domain else most // 2  # of a whole curriculum, about the mean
    routed = earlier + run_size(plan, model).rounds
    with working("measuring how fast a layer is here"):
        taken = {
            _name(dtype): times(plan, measure_pace(plan, config, device, dtype, frozen, routed), domains)
            for dtype in dtypes
        }
    show_times(taken, domains, console)


def _alone(recipe: Recipe, domain: str) -> Recipe:
    router = dataclasses.replace(recipe.router, floors={})
    return dataclasses.replace(recipe, domains=(recipe.domain(domain),), router=router)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def show_times(taken: Mapping[str, Times], domains: int, console: Console) -> None:
    """Print how long the run takes, and its router.

    Args:
        taken: the name of a dtype that the run may compute in -> what it takes then.
        domains: that the router has stacks of.
    """
    table = Table(title="time, at most")
    table.add_column("computing in")
    for name in taken:
        table.add_column(name, justify="right")
    found = taken.values()
    for name in ("steps", "evaluations"):
        table.add_row(name, *(duration(getattr(one, name)) for one in found))
    table.add_row("training, in all", *(duration(one.steps + one.evaluations) for one in found))
    table.add_section()
    table.add_row(f"a router of {domains} domains", *(duration(one.router) for one in found))
    console.print(table)
    console.print(
        "measured on two layers of this shape with random weights, as if every core were free; rows half as "
        "long take half the time"
    )


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
