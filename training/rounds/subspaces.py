"""Where stacks write and read: the singular values and directions of their deltas, and how these overlap.

The delta matrix of a stack at one projection is that of all its experts and rounds, ungated,

    D = s * sum over rounds and experts of  B_e A_e        [d_out, d_in]

Its singular value decomposition D = U diag(S) V^T is taken from the QR of the factors, and D is never formed.
U's leading columns are the **write** subspace, V's the **read** subspace: the directions that carry most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from statistics import fmean

import torch
from torch import Tensor

from brainstacks.layers.packed_stack import StackTensors
from training.rounds.null_space import NEGLIGIBLE

DIRECTIONS = 16
"""Leading directions of a subspace: the rank of one expert in the paper."""


def decompose(stack: StackTensors, layer: int, projection: str) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD of the delta matrix D.

    Returns:
        U [d_out, m], S [m] descending and V [d_in, m], float64, m = min(rounds * N * r, d_in, d_out).
    """
    names = [f"rounds.{n}.layers.{layer}.{projection}" for n in range(stack.rounds)]
    B = torch.cat([stack.tensors[f"{name}.B"] for name in names], dim=1).double()
    A = torch.cat([stack.tensors[f"{name}.A"] for name in names]).double()
    left, right = torch.linalg.qr(B), torch.linalg.qr(A.T)
    U, S, Vh = torch.linalg.svd(stack.config.scaling * left.R @ right.R.T, full_matrices=False)
    return left.Q @ U, S, right.Q @ Vh.T


def write_subspace(stack: StackTensors, layer: int, projection: str, directions: int = DIRECTIONS) -> Tensor:
    """The leading left singular vectors of D: [d_out, at most `directions`] float64, orthonormal."""
    U, S, _ = decompose(stack, layer, projection)
    return _leading(U, S, directions)


def read_subspace(stack: StackTensors, layer: int, projection: str, directions: int = DIRECTIONS) -> Tensor:
    """The leading right singular vectors of D: [d_in, at most `directions`] float64, orthonormal."""
    _, S, V = decompose(stack, layer, projection)
    return _leading(V, S, directions)


def _leading(vectors: Tensor, values: Tensor, directions: int) -> Tensor:
    kept = int((values > NEGLIGIBLE * values[0]).sum())
    return vectors[:, : min(kept, directions)].clone()  # a view would keep all of them in memory


def mean_squared_cosine(a: Tensor, b: Tensor) -> float:
    """Mean of cos^2 over the principal angles of two subspaces: |a^T b|_F^2 / min(p, q).

    0 when they are orthogonal, 1 when one holds the other. To be read beside `expected_squared_cosine`: of
    2048 dimensions, two random subspaces of 64 give 0.031.

    Args:
        a, b: [d, p] and [d, q], orthonormal columns.

    Raises:
        ValueError: one of them has no direction, and so no angle to the other.
    """
    if min(a.shape[1], b.shape[1]) == 0:
        raise ValueError("a subspace without directions has no angles; leave deltas that are zero out")
    return float((a.T @ b).square().sum()) / min(a.shape[1], b.shape[1])


def expected_squared_cosine(d: int, p: int, q: int) -> float:
    """E[`mean_squared_cosine`] of subspaces of p and q dimensions, drawn uniformly in d: max(p, q) / d."""
    return max(p, q) / d


@dataclass(frozen=True)
class Overlap:
    """How far two stacks share directions: means over the layers and projections that both correct.

    Attributes:
        cosine: mean squared cosine of their subspaces.
        random: what random subspaces of the same dimensions would give, on average.
    """

    cosine: float
    random: float


def overlaps(
    stacks: Mapping[str, StackTensors],
    subspace: Callable[[StackTensors, int, str, int], Tensor],
    directions: int = DIRECTIONS,
) -> dict[tuple[str, str], Overlap]:
    """Of each pair of `stacks`, in order; a pair that corrects no projection in common is left out.

    Args:
        subspace: `write_subspace` or `read_subspace`.
    """
    bases = {name: _bases(stack, subspace, directions) for name, stack in stacks.items()}
    found = {}
    for first, second in combinations(stacks, 2):
        pairs = [(a, bases[second][at]) for at, a in bases[first].items() if at in bases[second]]
        if pairs:
            cosine = fmean(mean_squared_cosine(a, b) for a, b in pairs)
            random = fmean(expected_squared_cosine(len(a), a.shape[1], b.shape[1]) for a, b in pairs)
            found[first, second] = Overlap(cosine, random)
    return found


def _bases(
    stack: StackTensors, subspace: Callable[[StackTensors, int, str, int], Tensor], directions: int
) -> dict[tuple[int, str], Tensor]:
    """(layer, projection) -> basis, of the deltas that are not zero."""
    places = product(range(stack.config.layers), stack.config.projections)
    found = {(layer, name): subspace(stack, layer, name, directions) for layer, name in places}
    return {place: basis for place, basis in found.items() if basis.shape[1] > 0}


def singular_spectrum(stack: StackTensors) -> dict[str, Tensor]:
    """Projection -> S / S_1 of its delta matrices, averaged over the layers: [m] float64, descending.

    A delta that is zero counts as zeros.
    """
    spectra = {}
    for projection in stack.config.projections:
        values = [decompose(stack, layer, projection)[1] for layer in range(stack.config.layers)]
        tiny = torch.finfo(torch.float64).tiny
        spectra[projection] = torch.stack([S / S[0].clamp(min=tiny) for S in values]).mean(0)
    return spectra
