"""The control: random stacks of the same norms, in the place of trained ones (arXiv 2602.12323)."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch

from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack
from training.router.stacked_base import StackedBase


def random_twin(stack: StackTensors, seed: int) -> StackTensors:
    """A stack whose every factor is Gaussian, of the Frobenius norm that `stack` has there."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in sorted(stack.tensors.items()):
        drawn = torch.randn(tensor.shape, generator=generator)
        tensors[name] = (drawn * (tensor.float().norm() / drawn.norm())).to(tensor.dtype)
    return StackTensors(stack.config, stack.rounds, tensors)


def served_stacks(registry: Registry) -> dict[str, StackTensors]:
    """Domain -> its active stack, in the registry's order, on the CPU."""
    return {
        domain: load_stack(registry.blob_path(history.current.digest))
        for domain, history in registry.snapshot().domains.items()
    }


def with_random_twins(stacked: StackedBase, registry: Registry, seed: int) -> StackedBase:
    """`stacked` with random twins of all its stacks, on the same base."""
    bank = StackBank(stacked.base.device, stacked.base.dtype)
    digests = {domain: f"random twin {seed} of {digest}" for domain, digest in stacked.digests.items()}
    for domain, stack in served_stacks(registry).items():
        own = hashlib.sha256(digests[domain].encode()).hexdigest()[:12]
        bank.add(domain, random_twin(stack, int(own, 16)))
    return replace(stacked, bank=bank, digests=digests)
