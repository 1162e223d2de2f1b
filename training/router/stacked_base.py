"""Losses of examples under compositions, many in one batch; the composition that serving gives; and the name
of a combination of stacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.routing.policy import active_domains, floored
from brainstacks.routing.router import Router
from brainstacks.stacks.artifact import check_base, read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack
from brainstacks.tokenizer import ChatTokenizer
from training.data.batches import TOKENS, collate, loss_batches
from training.data.encoding import Example
from training.progress import tracked
from training.rounds.objective import response_nll, row_sums


def name_of(domains: Iterable[str]) -> str:
    return "+".join(domains)


def domains_of(name: str) -> tuple[str, ...]:
    return tuple(name.split("+")) if name else ()


Weights = Mapping[str, float]
"""Domain -> weight."""


@dataclass(frozen=True)
class StackedBase:
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
    def load(cls, base: BaseModel, registry: Registry) -> StackedBase:
        """Raises IncompatibleArtifact: a stack was made for another base."""
        hooks = CompositionHooks(base.sites)
        hooks.attach()
        bank = StackBank(base.device, base.dtype)
        digests = {}
        for domain, history in registry.snapshot().domains.items():
            digest = history.current.digest
            path = registry.blob_path(digest)
            metadata = read_stack_metadata(path)
            check_base(metadata, base.identity.fingerprint, base.identity.dims, base.identity.layers)
            bank.add(domain, load_stack(path))
            digests[domain] = digest
        return cls(base, base.chat_tokenizer(), hooks, bank, digests)

    @torch.no_grad()
    def nll(self, examples: Sequence[Example], weights: Sequence[Weights]) -> Tensor:
        """Sum of the response's NLL (nats) of each example under its own weights.

        Returns:
            [B] float32, on the CPU.
        """
        batch = collate(examples)
        there, bound = batch.to(self.base.device), self.bank.bind(weights)
        with self.hooks.composed(*([bound] if bound else []), responses=there.responses):
            return row_sums(response_nll(self.base.model, there), batch)

    def losses(
        self, examples: Sequence[Example], weights: Sequence[Weights], tokens: int = TOKENS
    ) -> list[float]:
        """`nll` of any number of rows, in batches that a budget of `tokens` bounds (`loss_batches`)."""
        found = [0.0] * len(examples)
        with tracked(loss_batches(examples, tokens), "measuring losses", "batches") as each:
            for rows in each:
                sums = self.nll([examples[i] for i in rows], [weights[i] for i in rows])
                for i, value in zip(rows, sums.tolist(), strict=True):
                    found[i] = value
        return found


def routed_weights(
    stacked: StackedBase, router: Router, probabilities: Sequence[Mapping[str, float]]
) -> list[Weights]:
    """What serving applies for each prompt's `probabilities`: floors, then the gate.

    As in serving, a stack other than the one that the router was trained with is left out.
    """
    routable = [d for d, digest in stacked.digests.items() if router.metadata.knows(d, digest)]
    applied: list[Weights] = []
    for given in probabilities:
        chosen = floored(given, router.config.floors)
        weights = {d: chosen[d] for d in routable}
        active = active_domains(weights, router.config.gate_threshold)
        applied.append({d: weights[d] for d in active})
    return applied
