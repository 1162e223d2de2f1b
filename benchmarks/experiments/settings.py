"""What decides the experiments' figures: one frozen set of settings for all studies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from benchmarks.instruments.options import DEFAULT_BASE
from brainstacks.config import Quantization
from training.recipe.recipe import DomainRecipe, Recipe
from training.recipe.settings import (
    DataRecipe,
    EarlierMode,
    NullSpaceConfig,
    RoundConfig,
    RouterRecipe,
    StackRecipe,
    require,
)

NEVER = 1_000_000
"""Evaluations without improvement, or nats, that no round comes to: a round runs to its end."""


@dataclass(frozen=True)
class Settings:
    """Shared by all studies, so that they share trainings. A study adds only what it compares.

    Every round runs to its end, so that contestants see equal tokens; its best snapshot on the selection
    records counts, for every contestant alike.

    Attributes:
        base, quantization: as for `load_base`.
        domains: in curriculum order.
        long_domains: those that rounds and longer trainings are compared on: they cost most.
        seeds: of initialisation, data order, gate noise and sampled earlier stacks; one training each.
        steps: optimiser steps per domain and round.
        batch_size: rows of a step.
        learning_rate: peak, of every training unless a study says otherwise.
        rates: multiples of it that contestants of different kinds are trained at.
        warmup_steps, eval_every: as in `RoundConfig`.
        max_tokens: longest row (tokens); a longer response is cut, a longer prompt left out.
        records: most training records per domain, the same for all domains (count).
        selection, validation: records per domain that choose snapshots, and that figures are of (count).
        oracle: validation records per domain on which all combinations are measured (count).
        earlier: what the earlier stacks do in the curriculum that `methods` compares with others.
        stack: shape of a MoE-LoRA stack; LoRAs get the rank that gives equal trainable parameters.
        orthogonality: lambda of the O-LoRA penalty.
        directions: K of the null space.
        router: how routers are trained.
    """

    base: str = DEFAULT_BASE
    quantization: Quantization = "nf4"
    domains: tuple[str, ...] = ("chat", "code", "math", "medical", "reasoning")
    long_domains: tuple[str, ...] = ("math", "medical")
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 40
    batch_size: int = 8
    learning_rate: float = 8e-4
    rates: tuple[float, ...] = (1.0, 0.5)
    warmup_steps: int = 5
    eval_every: int = 10
    max_tokens: int = 160
    records: int = 480
    selection: int = 32
    validation: int = 48
    oracle: int = 12
    earlier: EarlierMode = "all"
    stack: StackRecipe = field(
        default_factory=lambda: StackRecipe(rank=2, experts=4, top_k=2, dtype="float32")
    )
    orthogonality: float = 0.5
    directions: int = 32
    router: RouterRecipe = field(
        default_factory=lambda: RouterRecipe(
            prompts=24,
            held_out=8,
            label_prior=0.1,
            margin_coefficient=0.0,
            epochs=30,
            learning_rate=5e-4,
            hidden_dim=128,
            dropout=0.3,
        )
    )

    def __post_init__(self) -> None:
        require(len(self.domains) >= 2, f"domains is {list(self.domains)}; the studies compose at least two")
        require(len(self.seeds) > 0, "seeds is empty; give at least one")
        strangers = [d for d in self.long_domains if d not in self.domains]
        require(
            not strangers and len(self.long_domains) > 0,
            f"long_domains is {list(self.long_domains)}; they are one or more of {', '.join(self.domains)}",
        )
        require(self.rates[:1] == (1.0,), f"rates is {list(self.rates)}; the first of them is 1.0")

    def recipe(self) -> Recipe:
        """What `training.data.domains.prepare` and the router's training read."""
        return Recipe(
            base=self.base,
            quantization=self.quantization,
            domains=tuple(DomainRecipe(name, licence="not published") for name in self.domains),
            data=DataRecipe(max_tokens=self.max_tokens, selection=self.selection, validation=self.validation),
            stack=self.stack,
            round=self.round(self.steps, self.learning_rate, seed=0),
            router=self.router,
        )

    def round(self, steps: int, learning_rate: float, seed: int) -> RoundConfig:
        """One round's. The optimiser is the same on every device."""
        return RoundConfig(
            optimizer="adamw",
            steps=steps,
            batch_size=self.batch_size,
            learning_rate=learning_rate,
            warmup_steps=self.warmup_steps,
            eval_every=self.eval_every,
            patience=NEVER,
            spike=NEVER,
            checkpoint_every=self.eval_every,
            seed=seed,
        )

    def null_space(self, side: Literal["output", "input"]) -> NullSpaceConfig:
        """Measured on all selection records of the earlier domains."""
        return NullSpaceConfig(
            side=side, directions=self.directions, samples=self.selection * len(self.domains)
        )
