"""A stack of one expert is a plain LoRA: its gate is always 1, and its rounds concatenate along the rank."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from brainstacks.config import StackConfig
from brainstacks.errors import InvalidArtifact
from brainstacks.layers.packed_stack import StackTensors


def check_one_expert(config: StackConfig, what: str) -> None:
    """Refuse a stack that no LoRA equals. Raises InvalidArtifact."""
    if config.experts != 1:
        raise InvalidArtifact(
            f"{what} has {config.experts} experts, between which gates choose for each token, and "
            "plain weights have no gate; take a stack of one expert, imported or trained with experts: 1"
        )
    if config.applies != "everywhere":
        raise InvalidArtifact(
            f"{what} acts on the {config.applies} alone, and plain weights act on every token; take a "
            "stack that was trained with applies: everywhere"
        )


def factors(stack: StackTensors) -> Iterator[tuple[tuple[int, str], Tensor, Tensor]]:
    """Of each linear with a delta: (layer, projection), A [rounds * r, d_in], B [d_out, rounds * r].

    The delta of x is s B A x, s = `stack.config.scaling`. Linears whose B is all zeros are left out.
    """
    for layer in range(stack.config.layers):
        for projection in stack.config.projections:
            A, B = (
                [stack.tensors[f"rounds.{n}.layers.{layer}.{projection}.{part}"] for n in range(stack.rounds)]
                for part in "AB"
            )
            if any(up.any() for up in B):
                yield (layer, projection), torch.cat(A), torch.cat(B, dim=1)
