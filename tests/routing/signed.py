"""Signatures of a tiny base, made by hand: around the prompts that they are to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.config import SignatureConfig
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.routing.features import mixed_hidden_states, pad_prompts
from brainstacks.routing.signature import Signature, pooled, seen_from
from brainstacks.stacks.artifact import read_stack_metadata
from brainstacks.stacks.tensors import save_stack
from tests.tiny import write_stack


@torch.no_grad()
def vectors(base: BaseModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """[n, 2, d] of prompts."""
    ids, mask = pad_prompts(prompts, 256, base.device)
    return pooled(mixed_hidden_states(base.model, ids), mask)


def signature_around(
    base: BaseModel, prompts: Sequence[Sequence[int]], sigma: float = 0.05, **changes: object
) -> Signature:
    """One that finds `prompts` near: no centre, no spread, and mu is their mean distance."""
    seen = seen_from(torch.zeros(2, base.identity.hidden_size), vectors(base, prompts))
    mean = seen.mean(dim=0)
    mu = (seen - mean).flatten(1).norm(dim=1).mean()
    config = SignatureConfig(base.identity.hidden_size, 1, len(prompts), base.quantization, **changes)  # type: ignore[arg-type]
    spread = torch.zeros(1, 2, base.identity.hidden_size)
    return Signature(config, torch.zeros_like(mean), mean, spread, torch.tensor([float(mu), sigma]))


def write_signed(path: Path, base: BaseModel, domain: str, stack: StackTensors, signature: Signature) -> Path:
    """A stack file with `signature`."""
    write_stack(path, base.identity, domain, stack)
    metadata = dataclasses.replace(read_stack_metadata(path), signature=signature.config)
    save_stack(path, metadata, {**stack.tensors, **signature.tensors()})
    return path
