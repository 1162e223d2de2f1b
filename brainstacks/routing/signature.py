"""Routing signatures: how far a prompt is from what each domain's prompts look like.

A prompt is two vectors: of its features (`features.py`), each token normalised, the mean and the last. Seen
from the centre, which is where prompts of no domain are, only their directions count:

    y_i = [unit(mean - c_i), unit(last - c_i)] - m_i                    for domain i: in R^2d
    s_i = (sqrt(|y_i|^2 - |S_i y_i|^2) - mu_i) / sigma_i                S_i: its spread

S_i takes out of the distance what the domain's own prompts vary by (a probabilistic PCA: the Mahalanobis
distance under it, but for a factor that sigma_i holds). mu_i and sigma_i are of prompts that m_i and S_i were
not made of, so that s_i counts standard deviations, and means the same for every domain.

    probability of i = sigmoid(A (T - s_i)) sigmoid(A (min over j != i of s_j - s_i))
    gap              = sigmoid(A (min over i of s_i - T))

near enough to be of the domain, and nearer to it than to any other; and near to none (paper, section 8.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from brainstacks.config import SignatureConfig
from brainstacks.errors import InvalidArtifact
from brainstacks.stacks.signature_file import SIGNATURE

THRESHOLD = 2.0
"""T, in standard deviations: a prompt that far out is as likely of the domain as not."""

STEEPNESS = 2.0
"""A, per standard deviation: within one of T a probability goes from 0.12, the policy's gate, to 0.88."""

LEAST_SIGMA = 1e-6
"""Distances lie in 0..4; prompts that are all alike say nothing of how far others may be."""


@dataclass(frozen=True)
class Signature:
    """One domain's, as in its stack's file.

    Attributes:
        centre, mean: c and m, [2, d] float32.
        spread: S, [K, 2, d] float32.
        distances: mu and sigma, [2] float32.
    """

    config: SignatureConfig
    centre: Tensor
    mean: Tensor
    spread: Tensor
    distances: Tensor

    @classmethod
    def of(cls, config: SignatureConfig, tensors: Mapping[str, Tensor]) -> Signature:
        """From the tensors of a checked file. Raises InvalidArtifact: sigma is none."""
        parts = {name: tensors[SIGNATURE + name] for name in ("centre", "mean", "spread", "distances")}
        sigma = float(parts["distances"][1])
        if sigma < LEAST_SIGMA:
            raise InvalidArtifact(
                f"signature.distances has the standard deviation {sigma:g}; it is at least {LEAST_SIGMA:g}; "
                "make the signature of prompts that differ (brainstacks-train sign)"
            )
        return cls(config, **parts)

    def tensors(self) -> dict[str, Tensor]:
        """As a file names them."""
        parts = {"centre": self.centre, "mean": self.mean, "spread": self.spread, "distances": self.distances}
        return {SIGNATURE + name: tensor for name, tensor in parts.items()}


def pooled(features: Tensor, mask: Tensor) -> Tensor:
    """Mean and last of a prompt's normalised tokens.

    Args:
        features: [B, T, d] float32.
        mask: [B, T] bool, true at real tokens, which come first; at least one per row.

    Returns:
        [B, 2, d] float32.
    """
    tokens = F.layer_norm(features, features.shape[-1:]) * mask[..., None]
    lengths = mask.sum(dim=1)
    last = tokens[torch.arange(len(tokens), device=tokens.device), lengths - 1]
    return torch.stack([tokens.sum(dim=1) / lengths[:, None], last], dim=1)


def seen_from(centre: Tensor, prompts: Tensor) -> Tensor:
    """unit(prompts - centre), each of the two vectors for itself: [..., 2, d] twice -> [..., 2, d]."""
    return F.normalize(prompts - centre, dim=-1)


def distances(offsets: Tensor, spread: Tensor) -> Tensor:
    """sqrt(|y|^2 - |S y|^2): offsets [B, S, 2, d] and spreads [S, K, 2, d] -> [B, S]."""
    y = offsets.flatten(-2)
    within = torch.einsum("bsx,skx->bsk", y, spread.flatten(-2))
    # A file may claim a spread that takes out more than there is.
    return (y.square().sum(-1) - within.square().sum(-1)).clamp(min=0).sqrt()


class Signatures:
    """Those of several domains, one or more, in one tensor each.

    Args:
        signatures: domain -> its signature, all of one width.
        device: to compute on.
    """

    def __init__(self, signatures: Mapping[str, Signature], device: torch.device) -> None:
        self.domains = tuple(signatures)
        all_of = list(signatures.values())
        most = max(one.config.directions for one in all_of)
        filled = [F.pad(one.spread, (0, 0, 0, 0, 0, most - len(one.spread))) for one in all_of]
        self._centre, self._mean, self._spread, calibration = (
            torch.stack(parts).to(device, torch.float32)
            for parts in (
                [one.centre for one in all_of],
                [one.mean for one in all_of],
                filled,
                [one.distances for one in all_of],
            )
        )
        self._mu, self._sigma = calibration.unbind(-1)

    def scores(self, features: Tensor, mask: Tensor) -> Tensor:
        """s of each prompt under each domain, in standard deviations.

        Args:
            features: [B, T, d] float32.
            mask: [B, T] bool, true at real tokens; at least one per row.

        Returns:
            [B, S] float32.
        """
        offsets = seen_from(self._centre, pooled(features, mask)[:, None]) - self._mean
        return (distances(offsets, self._spread) - self._mu) / self._sigma


def probabilities(scores: Tensor) -> Tensor:
    """That a prompt is of each domain, by its scores [B, S] under all of them -> [B, S]."""
    near = torch.sigmoid(STEEPNESS * (THRESHOLD - scores))
    if scores.shape[1] == 1:
        return near
    two = scores.topk(2, dim=1, largest=False)
    first = torch.arange(scores.shape[1], device=scores.device) == two.indices[:, :1]
    nearest_other = torch.where(first, two.values[:, 1:], two.values[:, :1])
    return near * torch.sigmoid(STEEPNESS * (nearest_other - scores))


def gaps(scores: Tensor) -> Tensor:
    """That a prompt is of none of the domains, by its scores [B, S] under all of them -> [B]."""
    return torch.sigmoid(STEEPNESS * (scores.amin(dim=1) - THRESHOLD))
