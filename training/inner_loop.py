"""Train one round of one domain: best snapshot, spike and plateau rules (paper, section 3.3)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from brainstacks.config import StackConfig
from brainstacks.layers.hooks import CompositionHooks, DeltaSource
from training.active_stack import ActiveStack
from training.data import Example, by_length, collate, shuffled
from training.objective import response_nll


@dataclass(frozen=True)
class RoundConfig:
    """How one round is trained.

    Attributes:
        steps: optimiser steps.
        batch_size: examples per step.
        learning_rate: peak, after a linear warm-up and before a cosine to a tenth.
        warmup_steps: steps of the warm-up.
        weight_decay, clip, betas: AdamW's decoupled decay, gradient-norm cap, moment decays.
        balance_coefficient: weight of the balance loss.
        eval_every: steps between evaluations.
        patience: evaluations without improvement before stopping.
        spike: nats above the best evaluation at which the round stops.
        seed: of initialisation, data order and gate noise.
    """

    steps: int = 100
    batch_size: int = 8
    learning_rate: float = 2e-4
    warmup_steps: int = 10
    weight_decay: float = 0.01
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    balance_coefficient: float = 0.01
    eval_every: int = 25
    patience: int = 4
    spike: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class RoundResult:
    """Outcome of one round.

    Attributes:
        tensors: the best snapshot as `ActiveStack.export` gives it; None when no evaluation beat the
            zero-delta baseline, and nothing may be frozen.
        baseline, best: validation NLL (nats per token) before the round and at the snapshot.
        history: one dict per evaluation: step, train_loss, val_loss.
    """

    tensors: dict[str, Tensor] | None
    baseline: float
    best: float
    history: list[Mapping[str, float]] = field(default_factory=list)


@torch.no_grad()
def evaluate(
    model: Any,
    hooks: CompositionHooks,
    examples: Sequence[Example],
    *sources: DeltaSource,
    batch_size: int = 16,
) -> float:
    """Token-weighted mean NLL (nats) of the responses of `examples` under `sources`.

    Independent of batch size and padding, up to rounding.
    """
    total, tokens = 0.0, 0
    with hooks.composed(*sources):
        for group in by_length(examples, batch_size):
            nll = response_nll(model, collate(group).to(model.device))
            total += float(nll.double().sum())
            tokens += nll.numel()
    return total / tokens


def learning_rate(step: int, config: RoundConfig) -> float:
    """Linear warm-up, then a cosine from the peak to a tenth of it."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def train_round(
    model: Any,
    hooks: CompositionHooks,
    stack: StackConfig,
    dims: Mapping[str, tuple[int, int]],
    train: Sequence[Example],
    validation: Sequence[Example],
    config: RoundConfig,
    frozen: Sequence[DeltaSource] = (),
    report: Callable[[str], None] = print,
) -> RoundResult:
    """Train a zero-delta round on top of `frozen` and return its best snapshot.

    The best starts at the zero-delta baseline and NaN loses every comparison, so a round that never
    helps, or that diverges, leaves nothing to freeze.
    """
    torch.manual_seed(config.seed)
    active = ActiveStack(stack, dims).to(model.device)
    optimizer = torch.optim.AdamW(
        active.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )
    active.eval()
    best = baseline = evaluate(model, hooks, validation, *frozen, active)
    result = RoundResult(None, baseline, best)
    report(f"baseline: validation {baseline:.4f} nats")
    stale, started = 0, time.monotonic()
    window: list[float] = []
    batches = shuffled(train, config.batch_size, config.seed)
    for step in range(config.steps):
        batch = collate(next(batches)).to(model.device)
        active.train()
        active.begin(batch.attention_mask)
        with hooks.composed(*frozen, active):
            loss = response_nll(model, batch).mean()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        (loss + config.balance_coefficient * active.balance_loss()).backward()
        torch.nn.utils.clip_grad_norm_(active.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        window.append(float(loss.detach()))
        if (step + 1) % config.eval_every and step + 1 != config.steps:
            continue
        active.eval()
        value = evaluate(model, hooks, validation, *frozen, active)
        elapsed = time.monotonic() - started
        left = elapsed / (step + 1) * (config.steps - step - 1)
        train_loss = sum(window) / len(window)
        window = []
        report(
            f"step {step + 1}/{config.steps}: train {train_loss:.4f}, validation {value:.4f}, "
            f"{elapsed / (step + 1):.2f} s/step, {left / 60:.1f} min left"
        )
        history = [*result.history, {"step": step + 1, "train_loss": train_loss, "val_loss": value}]
        if value < best:  # false for NaN
            best, stale = value, 0
            result = RoundResult(active.export(), baseline, best, history)
        else:
            stale += 1
            result = RoundResult(result.tensors, baseline, best, history)
        if not value <= best + config.spike or stale >= config.patience:
            report("stopped: " + ("no improvement" if stale >= config.patience else "the loss spiked"))
            break
    return result
