"""Losses of examples under compositions, many in one batch; the composition that serving gives; and the name
of a combination of stacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.routing.policy import active_domains, floored
from brainstacks.routing.reader import Reader, Served
from brainstacks.routing.router import Router
from brainstacks.routing.signature import Signature
from brainstacks.stacks.artifact import check_base, read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.signature_file import check_width
from brainstacks.stacks.tensors import load_signature, load_stack
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
        signatures: domain -> its signature, of the stacks that have one.
    """

    base: BaseModel
    tokenizer: ChatTokenizer
    hooks: CompositionHooks
    bank: StackBank
    digests: Mapping[str, str]
    signatures: Mapping[str, Signature] = field(default_factory=dict)

    @classmethod
    def load(cls, base: BaseModel, registry: Registry) -> StackedBase:
        """Raises IncompatibleArtifact: a stack was made for another base."""
        hooks = CompositionHooks(base.sites)
        hooks.attach()
        bank = StackBank(base.device, base.dtype)
        digests, signatures = {}, {}
        for domain, history in registry.snapshot().domains.items():
            digest = history.current.digest
            path = registry.blob_path(digest)
            metadata = read_stack_metadata(path)
            check_base(metadata, base.identity.fingerprint, base.identity.dims, base.identity.layers)
            check_width(metadata.signature, base.identity.hidden_size)
            bank.add(domain, load_stack(path, metadata))
            digests[domain] = digest
            if metadata.signature is not None:
                signatures[domain] = Signature.of(metadata.signature, load_signature(path))
        return cls(base, base.chat_tokenizer(), hooks, bank, digests, signatures)

    def reader(self, router: Router | None) -> Reader:
        """What serving reads prompts with: `router`, and the signatures."""
        served = {d: Served(digest, self.signatures.get(d)) for d, digest in self.digests.items()}
        return Reader(router, served, self.base.device)

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
    stacked: StackedBase, router: Router | None, probabilities: Sequence[Mapping[str, float]]
) -> list[Weights]:
    """What serving applies for each prompt's `probabilities`: floors, then the gate.

    As in serving, a stack other than the one that the router was trained with is left out, unless it has a
    signature.
    """
    reader = stacked.reader(router)
    applied: list[Weights] = []
    for given in probabilities:
        chosen = floored(given, reader.floors)
        weights = {d: chosen[d] for d in stacked.digests if d in reader.deciders}
        active = active_domains(weights, reader.gate_threshold)
        applied.append({d: weights[d] for d in active})
    return applied
