"""Deltas of stacks whose weights vary by layer, projection or token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from brainstacks.layers.bank import BoundStack
from brainstacks.layers.hooks import Correction, DeltaSource
from brainstacks.layers.projections import INPUT_GROUPS
from training.router.stacked_base import StackedBase, Weights

Coefficients = Callable[[int, int, Tensor], Tensor]
"""(layer, group, x [B, T, d_in]) -> [B, T or 1, P or 1, S] float32, P the projections of the group."""

Thirds = tuple[float, float, float]
"""Factors of the lower, the middle and the upper third of the layers."""


@dataclass(frozen=True)
class Varying(DeltaSource):
    """The sum of S stacks, each times its coefficient."""

    stacks: tuple[BoundStack, ...]
    coefficients: Coefficients

    @classmethod
    def of(cls, stacked: StackedBase, rows: int, coefficients: Coefficients) -> Varying:
        """All stacks of `stacked`, in its order, for a batch of so many rows."""
        bound = [stacked.bank.bind([{domain: 1.0}] * rows) for domain in stacked.digests]
        return cls(tuple(stack for bank in bound for stack in bank.stacks), coefficients)

    def on(self, responses: Tensor) -> Varying:
        return replace(self, stacks=tuple(stack.on(responses) for stack in self.stacks))

    def corrections(self, layer: int, group: int, x: Tensor) -> Mapping[str, Sequence[Correction]]:
        found: dict[str, list[Correction]] = {}
        every = self.coefficients(layer, group, x)
        for number, stack in enumerate(self.stacks):
            names = stack.stack.shape.projections(group)
            places = [INPUT_GROUPS[group].index(p) for p in names]
            own = every[..., number]
            own = own[..., places] if own.shape[-1] > 1 else own
            weighted = replace(stack, weights=stack.weights * own[:, :, None, :, None])
            for projection, correction in weighted.corrections(layer, group, x).items():
                found.setdefault(projection, []).append(correction)
        return found


def by_thirds(stacked: StackedBase, weights: Sequence[Weights], factors: Thirds) -> Varying:
    """Each row's `weights`, times the factor of the layer's third."""
    given = [[row.get(domain, 0.0) for domain in stacked.digests] for row in weights]
    rows = torch.tensor(given, device=stacked.base.device)[:, None, None]
    layers = stacked.base.identity.layers

    def coefficients(layer: int, group: int, x: Tensor) -> Tensor:
        return rows * factors[3 * layer // layers]

    return Varying.of(stacked, len(weights), coefficients)
