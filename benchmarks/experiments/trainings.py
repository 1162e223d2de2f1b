"""A training, described: everything that decides a stack besides base, data and shared settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from brainstacks.config import Quantization
from brainstacks.layers.projections import INPUT_GROUPS
from training.recipe.settings import EarlierMode, StackRecipe
from training.rounds.active_stack import ActiveStack
from training.rounds.gating import PUBLISHED, Gating
from training.rounds.task import Penalty


@dataclass(frozen=True)
class Training:
    """One round of one stack. Descriptions name what they build on, so equal ones are one training.

    Without earlier stacks nothing is left to choose about them, and what is not used is dropped: the first
    domain of every curriculum is one training.

    Attributes:
        domains: trains on their records together, as many of each.
        stack: its shape; one expert is a plain rsLoRA.
        rate: peak learning rate.
        seed: of initialisation, data order and noise.
        earlier: the stacks of earlier domains, in order.
        mode: what those do meanwhile.
        own: frozen rounds of the same domain, on at 1.0.
        initial: training starts from its weights, not from zero deltas.
        orthogonality: lambda of the O-LoRA penalty against `earlier`.
        null_space: where the stack must not write, or read, what `earlier` do.
        gating: how its gates begin, and what they become.
        changes: other fields of its `RoundConfig`, by name.
    """

    domains: tuple[str, ...]
    stack: StackRecipe
    steps: int
    rate: float
    seed: int
    quantization: Quantization
    earlier: tuple[Training, ...] = ()
    mode: EarlierMode = "none"
    own: tuple[Training, ...] = ()
    initial: Training | None = None
    orthogonality: float = 0.0
    null_space: Literal["output", "input"] | None = None
    gating: Gating = PUBLISHED
    changes: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        def drop(**values: Any) -> None:
            for name, value in values.items():
                object.__setattr__(self, name, value)

        if not self.earlier:
            drop(mode="none", orthogonality=0.0, null_space=None)
        elif self.mode == "none" and not self.orthogonality and self.null_space is None:
            drop(earlier=())

    @property
    def builds_on(self) -> tuple[Training, ...]:
        """What must be trained before."""
        return (*self.earlier, *self.own, *([self.initial] if self.initial is not None else []))

    @property
    def name(self) -> str:
        """Of its domains; what trains on top of others tells them apart by it."""
        return "+".join(self.domains)

    def __str__(self) -> str:
        kind = f"LoRA r{self.stack.rank}"
        if self.stack.experts > 1:
            kind = f"MoE-LoRA {self.stack.experts} x r{self.stack.rank}"
        parts = [kind, self.name, self.quantization, f"{self.steps} steps", f"seed {self.seed}"]
        if self.earlier:
            parts.append(f"earlier {self.mode}")
        if self.own:
            parts.append(f"round {len(self.own) + 1}")
        if self.initial is not None:
            parts.append("continued")
        if self.orthogonality:
            parts.append("orthogonal")
        if self.stack.applies == "response":
            parts.append("response alone")
        if self.null_space:
            parts.append(f"null space {self.null_space}")
        if self.gating != PUBLISHED:
            parts.append(str(self.gating))
        parts += [f"{name} {value}" for name, value in self.changes]
        return ", ".join(parts)


def in_order(trainings: Iterable[Training]) -> list[Training]:
    """Each once, after all that it builds on."""
    found: dict[Training, None] = {}
    for training in trainings:
        found |= dict.fromkeys((*in_order(training.builds_on), training))
    return list(found)


def orthogonal_to(earlier: list[dict[str, Tensor]], strength: float) -> Penalty:
    """The O-LoRA penalty, strength * sum over earlier LoRAs and projections of |A_earlier A^T|^2.

    Args:
        earlier: of each earlier LoRA, `<layer>_<group>` -> [P, R, d_in], the A of a group's projections.
    """

    def penalty(active: ActiveStack) -> Tensor:
        mine = factors(active)
        return (
            strength
            * torch.stack(
                [(other[key] @ A.mT).square().sum() for other in earlier for key, A in mine.items()]
            ).sum()
        )

    return penalty


def factors(active: ActiveStack) -> dict[str, Tensor]:
    """`<layer>_<group>` -> [P, R, d_in], the A of each projection in the group, with its gradient."""
    config = active.config
    columns = config.experts * config.rank
    found = {}
    for key, down in active.down.items():
        group = INPUT_GROUPS[int(key.rpartition("_")[2])]
        projections = sum(name in config.projections for name in group)
        found[key] = down.unflatten(0, (projections, columns))
    return found
