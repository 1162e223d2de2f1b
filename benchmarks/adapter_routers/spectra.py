"""Routers that read the adapters alone: Arrow (arXiv 2405.11157, as PEFT has it) and SpectR (2504.03454).

    dW_i = s * sum over rounds of B A = sum_j sigma_j u_j v_j^T      the experts of a stack as one low rank
    Arrow:   score_i = |v_1 . x|
    SpectR:  score_i = ||diag(sigma) V^T x|| = ||dW_i x||
    coefficients = softmax over the k largest scores, 0 elsewhere

for the input x of each projection and token: so they apply it. Their mean over layers, projections and tokens
of a prompt makes one weight per stack of it. The expert gates of a stack take no part in its scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from brainstacks.layers.hooks import Correction, DeltaSource
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.layers.projections import INPUT_GROUPS


def spectrum(stack: StackTensors, layer: int, projection: str) -> Tensor:
    """[R, d_in] float32, sigma_j v_j of one projection's dW, the largest first; R is rounds * N * r."""
    parts = [f"rounds.{n}.layers.{layer}.{projection}" for n in range(stack.rounds)]
    A = torch.cat([stack.tensors[f"{part}.A"].float() for part in parts])
    B = torch.cat([stack.tensors[f"{part}.B"].float() for part in parts], 1)
    reduced: Tensor = torch.linalg.qr(stack.config.scaling * B).R @ A
    _, sigma, right = torch.linalg.svd(reduced, full_matrices=False)
    found: Tensor = sigma[:, None] * right
    return found


@dataclass(frozen=True)
class Spectral:
    """Coefficients of S stacks for each token and projection.

    Attributes:
        directions: (layer, group) -> [P, S, R, d_in] float32; 0 where a stack has fewer, or no projection.
        there: (layer, group) -> [P, S] bool: the stack has a delta there.
        top: k.
    """

    directions: Mapping[tuple[int, int], Tensor]
    there: Mapping[tuple[int, int], Tensor]
    top: int

    @classmethod
    def arrow(cls, stacks: Sequence[StackTensors], top: int, device: torch.device) -> Spectral:
        """One unit direction of each delta."""
        return cls._of(stacks, top, device, first=True)

    @classmethod
    def spectr(cls, stacks: Sequence[StackTensors], top: int, device: torch.device) -> Spectral:
        """All directions, as long as their singular values."""
        return cls._of(stacks, top, device, first=False)

    @classmethod
    def _of(cls, stacks: Sequence[StackTensors], top: int, device: torch.device, *, first: bool) -> Spectral:
        width = 1 if first else max(s.rounds * s.config.experts * s.config.rank for s in stacks)
        directions, there = {}, {}
        for layer in range(stacks[0].config.layers):
            for group, names in enumerate(INPUT_GROUPS):
                has = torch.tensor([[p in stack.config.projections for stack in stacks] for p in names])
                if not has.any():
                    continue
                d_in = next(stack.dims[p][0] for p in names for stack in stacks if p in stack.dims)
                found = torch.zeros(*has.shape, width, d_in)
                for p, s in has.nonzero().tolist():
                    rows = spectrum(stacks[s], layer, names[p])
                    rows = F.normalize(rows[:1], dim=-1) if first else rows
                    found[p, s, : len(rows)] = rows
                directions[layer, group], there[layer, group] = found.to(device), has.to(device)
        return cls(directions, there, min(top, len(stacks)))

    def scores(self, layer: int, group: int, x: Tensor) -> Tensor:
        """[..., P, S] float32, for x [..., d_in]; 0 where there is no delta."""
        directions = self.directions[layer, group]
        along = x.float() @ directions.flatten(0, 2).T
        scores: Tensor = along.unflatten(-1, directions.shape[:3]).norm(dim=-1)
        return scores

    def __call__(self, layer: int, group: int, x: Tensor) -> Tensor:
        """Coefficients [..., P, S] float32, for x [..., d_in]."""
        if (layer, group) not in self.directions:
            count = next(iter(self.there.values())).shape[1]
            return x.new_zeros(*x.shape[:-1], len(INPUT_GROUPS[group]), count, dtype=torch.float32)
        scores = self.scores(layer, group, x).masked_fill(~self.there[layer, group], float("-inf"))
        kept, places = scores.topk(self.top, dim=-1)
        shares = kept.softmax(-1).nan_to_num()  # of a projection that no stack has
        return torch.zeros_like(scores).scatter(-1, places, shares)


class MeanCoefficients(DeltaSource):
    """Corrects nothing, and adds up the coefficients that the base's activations give.

    Args:
        mask: [B, T] bool, true at tokens of a prompt.
    """

    def __init__(self, spectral: Spectral, mask: Tensor) -> None:
        self._spectral = spectral
        self._mask = mask
        self._total: Tensor | float = 0.0

    def corrections(self, layer: int, group: int, x: Tensor) -> Mapping[str, Sequence[Correction]]:
        if (layer, group) in self._spectral.directions:
            found = self._spectral(layer, group, x) * self._mask[..., None, None]
            self._total = self._total + found.sum((1, 2))
        return {}

    def weights(self) -> list[list[float]]:
        """Per prompt and stack: the mean over layers, projections and tokens. A prompt's sum to 1."""
        total = torch.as_tensor(self._total)
        rows: list[list[float]] = (total / total.sum(-1, keepdim=True)).tolist()
        return rows
