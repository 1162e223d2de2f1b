"""Losses of examples under compositions, many in one batch; the composition that serving gives; and the name
of a combination of stacks.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
from brainstacks.stacks.signature_file import check_width, holds
from brainstacks.stacks.tensors import load_signature, load_stack
from brainstacks.tokenizer import ChatTokenizer
from training.data.batches import TOKENS, collate, loss_batches
from training.data.encoding import Example
from training.rounds.objective import response_nll, row_sums
from training.runs.processes import ALONE, Processes

if TYPE_CHECKING:
    from transformers.cache_utils import Cache


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
        processes: that share the forwards of `losses`, which all of them then ask for together.
    """

    base: BaseModel
    tokenizer: ChatTokenizer
    hooks: CompositionHooks
    bank: StackBank
    digests: Mapping[str, str]
    signatures: Mapping[str, Signature] = field(default_factory=dict)
    processes: Processes = ALONE

    @classmethod
    def load(cls, base: BaseModel, registry: Registry, processes: Processes = ALONE) -> StackedBase:
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
            made = metadata.signature
            if made is not None and holds(made.quantization, base.quantization):
                signatures[domain] = Signature.of(made, load_signature(path))
        return cls(base, base.chat_tokenizer(), hooks, bank, digests, signatures, processes)

    def reader(self, router: Router | None) -> Reader:
        """What serving reads prompts with: `router`, and the signatures."""
        served = {d: Served(digest, self.signatures.get(d)) for d, digest in self.digests.items()}
        return Reader(router, served, self.base.device)

    @torch.no_grad()
    def nll(
        self, examples: Sequence[Example], weights: Sequence[Weights], past: Cache | None = None
    ) -> Tensor:
        """Sum of the response's NLL (nats) of each example under its own weights.

        Args:
            past: as in `response_nll`.

        Returns:
            [B] float32, on the CPU.
        """
        batch = collate(examples)
        there = batch.to(self.base.device)
        with self._composed(weights, there.responses):
            return row_sums(response_nll(self.base.model, there, past), batch)

    def losses(
        self, examples: Sequence[Example], weights: Sequence[Weights], tokens: int = TOKENS
    ) -> list[float]:
        """`nll` of any number of rows, in batches that a budget of `tokens` bounds (`loss_batches`).

        Rows of one example in which the same acts on the prompt share the prompt's keys and values.
        """
        groups = self._agreeing(examples, weights)
        sharing = [rows for rows in groups if len(rows) > 1]
        alone = [rows[0] for rows in groups if len(rows) == 1]
        batches = [[alone[i] for i in rows] for rows in loss_batches([examples[i] for i in alone], tokens)]

        def after_one_prompt(rows: Sequence[int]) -> list[float]:
            return self._after_one_prompt(examples[rows[0]], [weights[i] for i in rows], tokens)

        def apart(rows: Sequence[int]) -> list[float]:
            return self.nll([examples[i] for i in rows], [weights[i] for i in rows]).tolist()

        nats = [
            *self.processes.shared(sharing, after_one_prompt, "measuring losses", "prompts"),
            *self.processes.shared(batches, apart, "measuring losses", "batches"),
        ]
        found = [0.0] * len(examples)
        for rows, values in zip([*sharing, *batches], nats, strict=True):
            for i, value in zip(rows, values, strict=True):
                found[i] = value
        return found

    def _agreeing(self, examples: Sequence[Example], weights: Sequence[Weights]) -> list[list[int]]:
        """The rows of each example in which the same stacks act on its prompt, with the same weights."""
        everywhere = [d for d in self.digests if self.bank.resident(d).stack.applies == "everywhere"]
        groups: dict[Hashable, list[int]] = {}
        for i, (example, row) in enumerate(zip(examples, weights, strict=True)):
            # A prompt's last token predicts the response's first: of a single one nothing comes before.
            apart = i if len(example.prompt) == 1 else None
            key = (example, apart, *(row.get(d, 0.0) for d in everywhere))
            groups.setdefault(key, []).append(i)
        return list(groups.values())

    @torch.no_grad()
    def _after_one_prompt(self, example: Example, weights: Sequence[Weights], tokens: int) -> list[float]:
        """The example's `losses` under `weights`, which agree on its prompt."""
        from transformers import DynamicCache

        before = torch.tensor([example.prompt[:-1]], device=self.base.device)
        past = DynamicCache(config=self.base.model.config)
        with self._composed(weights[:1], torch.zeros_like(before, dtype=torch.bool)):
            self.base.model.get_decoder()(input_ids=before, past_key_values=past, use_cache=True)
        rest = [Example(example.id, example.prompt[-1:], example.response)] * len(weights)
        found = list[float]()
        # A row's copy of the prompt's keys and values takes room as if it had been computed for that row.
        for rows in loss_batches([example] * len(weights), tokens):
            theirs = copy.deepcopy(past)
            theirs.batch_repeat_interleave(len(rows))
            found += self.nll([rest[i] for i in rows], [weights[i] for i in rows], theirs).tolist()
        return found

    @contextmanager
    def _composed(self, weights: Sequence[Weights], responses: Tensor) -> Iterator[None]:
        """Each row of a batch under its own weights; see `DeltaSource.on`."""
        bound = self.bank.bind(weights)
        with self.hooks.composed(*([bound] if bound else []), responses=responses):
            yield


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
