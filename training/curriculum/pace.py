"""How long a run takes: measured on layers of the base's shape with random weights, and multiplied.

With t(n) the time of a step of n layers, one of L takes t(1) + (L - 1) (t(2) - t(1)): what is beside the
layers counts once. Weights are not quantised here: to unpack them takes some more.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.projections import decoder_layers, find_sites, projection_dims
from training.data.batches import collate
from training.data.encoding import Example
from training.recipe.recipe import Recipe
from training.rounds.active_stack import ActiveStack
from training.rounds.objective import response_nll

ROUNDS = 3
"""Of a measurement; the fastest counts, which nothing disturbed."""
TOKENS = 256
"""Of a measured forward, at most: enough to fill a core, and seconds even of a large base."""


@dataclass(frozen=True)
class Pace:
    """Seconds of one token, with every core for the run.

    Attributes:
        step: forward and backward in training; the optimiser is little beside them.
        forward: in an evaluation.
        routed: forward with the stacks of all domains on.
    """

    step: float
    forward: float
    routed: float


@dataclass(frozen=True)
class Times:
    """Seconds, where all rows are full and no round ends early.

    Attributes:
        steps, evaluations: of the training; evaluations choose snapshots, and report on validation records.
        router: of measuring the outcomes that a router is trained on.
    """

    steps: float
    evaluations: float
    router: float


def times(recipe: Recipe, pace: Pace, domains: int) -> Times:
    """Of training every domain of `recipe`, and a router of `domains` stacks."""
    data, rounds, router = recipe.data, recipe.round, recipe.router
    steps = evaluated = 0
    for domain in recipe.domains:
        count, own = recipe.rounds_of(domain), recipe.round_of(domain, 0).steps
        steps += count * own
        evaluated += count * (own // rounds.eval_every + 1) * data.selection + 2 * data.validation
    measured = domains * (router.prompts + router.held_out) * router.rows(domains)
    return Times(
        steps * rounds.accumulation * rounds.batch_size * data.max_tokens * pace.step,
        evaluated * data.max_tokens * pace.forward,
        measured * router.max_tokens * pace.routed,
    )


def measure_pace(
    recipe: Recipe, config: Any, device: torch.device, dtype: torch.dtype, frozen: int, routed: int
) -> Pace:
    """Of `recipe` on a base of this transformers `config`, computing in `dtype`.

    Args:
        frozen: rounds that are on beside the one in training.
        routed: rounds of the stacks of all domains.
    """
    layers = int(config.get_text_config().num_hidden_layers)
    with one_thread(device) as cores:
        model = _random_model(config, min(2, layers), device, dtype)
        two = _seconds(recipe, model, device, frozen, routed)
        model.get_decoder().layers = nn.ModuleList(decoder_layers(model)[:1])
        one = _seconds(recipe, model, device, frozen, routed)
    return Pace(*((a + (layers - 1) * max(b - a, 0.0)) / cores for a, b in zip(one, two, strict=True)))


@contextmanager
def one_thread(device: torch.device) -> Iterator[int]:
    """Compute in one thread, whose own time nobody else's work is part of; how many would share it. A GPU's
    time is the clock's."""
    threads = torch.get_num_threads()
    if device.type == "cuda":
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _random_model(config: Any, layers: int, device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    short = copy.deepcopy(config)
    text = short.get_text_config()
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    text.num_hidden_layers = layers
    with torch.device(device):
        return AutoModelForCausalLM.from_config(short, dtype=dtype).eval().requires_grad_(False)


def _seconds(
    recipe: Recipe, model: Any, device: torch.device, frozen: int, routed: int
) -> tuple[float, float, float]:
    """The fields of `Pace` for `model` as it is, in one thread."""
    sites, config = find_sites(model), recipe.stack.config(len(decoder_layers(model)))
    dims, noise = projection_dims(sites), recipe.round.gate_noise
    made = [ActiveStack(config, dims, noise=noise) for _ in range(max(frozen, routed - 1) + 1)]
    active, *others = (stack.to(device).eval().requires_grad_(False) for stack in made)
    length = min(recipe.data.max_tokens, TOKENS)
    half = tuple(range(1, length // 2 + 1))
    rows = [Example("row", half, half)] * min(recipe.round.batch_size, max(1, TOKENS // length))
    batch, hooks, tokens = collate(rows).to(device), CompositionHooks(sites), len(rows) * 2 * len(half)

    def forward(count: int) -> None:
        with torch.no_grad(), hooks.composed(*others[:count], active):
            response_nll(model, batch)

    def step() -> None:
        active.begin(batch.segments, batch.responses, batch.examples)
        with hooks.composed(*others[:frozen], active):
            (response_nll(model, batch).mean() + active.balance_sum() / tokens).backward()

    hooks.attach()
    try:
        found = [_fastest(partial(forward, count), device) for count in (frozen, routed - 1)]
        active.train().requires_grad_(True)
        taken = (_fastest(step, device), *found)
    finally:
        hooks.detach()
    return taken[0] / tokens, taken[1] / tokens, taken[2] / tokens


def _fastest(work: Callable[[], None], device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    taken = []
    for _ in range(ROUNDS):
        started = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(clock() - started)
    return min(taken)
