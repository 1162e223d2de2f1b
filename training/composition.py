"""Losses of examples under compositions: rows of one batch with different weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brainstacks.base_model import BaseModel, load_base
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.artifact import check_base, read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack_tensors
from brainstacks.tokenizer import ChatTokenizer
from training.data import Example, collate
from training.objective import response_nll, row_sums

Weights = Mapping[str, float]
"""Domain -> weight."""


@dataclass(frozen=True)
class Composed:
    """A base as it is served, with the active stack of every domain of a registry.

    Attributes:
        digests: domain -> digest of its stack, in the registry's order.
    """

    base: BaseModel
    tokenizer: ChatTokenizer
    hooks: CompositionHooks
    bank: StackBank
    digests: Mapping[str, str]

    @classmethod
    def load(cls, base_name: str, quantization: str, registry: Registry) -> Composed:
        """Raises IncompatibleArtifact: a stack was made for another base."""
        base = load_base(base_name, quantization=quantization)  # type: ignore[arg-type]
        hooks = CompositionHooks(base.sites)
        hooks.attach()
        bank = StackBank(base.device, base.dtype)
        digests = {}
        for domain, history in registry.snapshot().domains.items():
            digest = history.current.digest
            path = registry.blob_path(digest)
            metadata = read_stack_metadata(path)
            check_base(metadata, base.identity.fingerprint, base.identity.dims, base.identity.layers)
            bank.add(domain, StackTensors(metadata.config, metadata.rounds, load_stack_tensors(path)))
            digests[domain] = digest
        return cls(base, base.chat_tokenizer(), hooks, bank, digests)

    @torch.no_grad()
    def nll(self, examples: Sequence[Example], weights: Sequence[Weights]) -> Tensor:
        """Sum of the response's NLL (nats) of each example under its own weights.

        Returns:
            [B] float32, on the CPU.
        """
        batch = collate(examples).to(self.base.device)
        bound = self.bank.bind(weights)
        with self.hooks.composed(*([bound] if bound.buckets else [])):
            return row_sums(response_nll(self.base.model, batch), batch.labels).cpu()
