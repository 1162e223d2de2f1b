"""One setting of a stack in training: what the search between mixtures and LoRAs turns."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from benchmarks.experiments.parameters import Dims, Parameters, parameters
from benchmarks.experiments.trainings import Training
from brainstacks.config import Quantization
from training.recipe.settings import StackRecipe
from training.rounds.gating import Gating

Noise = Literal["on", "annealed", "off"]


@dataclass(frozen=True)
class Setting:
    """Whoever takes all experts chooses none: noise, balance and a soft start are dropped there, so that
    equal settings are one.

    Attributes:
        rate: peak learning rate.
        scaling: s of a delta. alpha / sqrt(r) and alpha / r are two values of it.
        dropout: as in `RoundConfig`.
        experts, top_k: as in `StackRecipe`.
        gate_rate: learning rate of gates and noise, over `rate`.
        gate_init, soft: as in `Gating`.
        noise: on the gates, as in the paper, or `annealed`, or none.
        balance: coefficient of the balance loss.
    """

    rate: float
    scaling: float
    dropout: float = 0.0
    experts: int = 1
    top_k: int = 1
    gate_rate: float = 1.0
    gate_init: float = 1.0
    noise: Noise = "on"
    balance: float = 0.01
    soft: float = 0.0

    def __post_init__(self) -> None:
        if self.top_k == self.experts:
            for name, value in (("noise", "off"), ("balance", 0.0), ("soft", 0.0)):
                object.__setattr__(self, name, value)

    def __str__(self) -> str:
        """What is not as in the paper, and the rate and scale."""
        told = [f"rate {self.rate:.2g}", f"scale {self.scaling:.2g}"]
        usual = Setting(self.rate, self.scaling, experts=self.experts, top_k=min(2, self.experts))
        for name in (f.name for f in fields(self)):
            if getattr(self, name) != getattr(usual, name):
                told.append(f"{name.replace('_', ' ')} {getattr(self, name)}")
        return ", ".join(told)

    def stack(self, rank: int) -> StackRecipe:
        """A stack of experts of this rank."""
        alpha = self.scaling * math.sqrt(rank)
        return StackRecipe(rank, alpha, self.experts, self.top_k, dtype="float32")

    def parameters(self, rank: int, dims: Dims, layers: int) -> Parameters:
        """Of one round of such a stack, as it trains."""
        return parameters(self.stack(rank), dims, layers, noise=self.noise != "off")

    def training(self, rank: int, domain: str, steps: int, seed: int, quantization: Quantization) -> Training:
        """Of one domain, alone on the base."""
        changes: dict[str, Any] = {"dropout": self.dropout}
        gating = Gating()
        if self.experts > 1:
            changes |= {
                "gate_learning_rate": self.rate * self.gate_rate,
                "gate_noise": self.noise != "off",
                "balance_coefficient": self.balance,
            }
            gating = Gating(self.gate_init, self.noise == "annealed", self.soft)
        return Training(
            (domain,),
            self.stack(rank),
            steps,
            self.rate,
            seed,
            quantization,
            gating=gating,
            changes=tuple(changes.items()),
        )
