"""Which experts the gates of a frozen stack choose, on its own domain's text: do they share the work?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brainstacks.durable import atomic_write
from brainstacks.layers.delta import gate_weights
from brainstacks.layers.hooks import Correction, DeltaSource
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.layers.projections import INPUT_GROUPS
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack
from training.data.batches import by_length, collate
from training.data.encoding import Example
from training.router.stacked_base import StackedBase
from training.runs.stored import read_as


@dataclass(frozen=True)
class ExpertUse:
    """How the gates of one stack spread the tokens over the experts.

    Attributes:
        digest: of the stack.
        tokens: that were counted, prompts and answers.
        projections: that carry deltas: P of them.
        shares: [rounds, layers, P, N] float64; dispatches to the expert over all dispatches of its gate, so
            that they sum to 1 over N. 1/N is an even share, 1/K the most that one expert can have.
    """

    digest: str
    tokens: int
    projections: tuple[str, ...]
    shares: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**vars(self), "projections": list(self.projections), "shares": self.shares.tolist()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ExpertUse:
        """What `to_dict` wrote."""
        shares = torch.tensor(document["shares"], dtype=torch.float64)
        return cls(document["digest"], document["tokens"], tuple(document["projections"]), shares)


def save_expert_use(path: Path, found: Mapping[str, ExpertUse]) -> None:
    """Write `found` (domain -> use) to the JSON file `path`. Raises StorageFull: no room."""
    atomic_write(path, json.dumps({domain: use.to_dict() for domain, use in found.items()}) + "\n")


def load_expert_use(path: Path) -> dict[str, ExpertUse]:
    """What `save_expert_use` wrote; {} where there is no file. Raises ConfigError: it is no such file."""
    return read_as(path, _expert_use_of) or {}


def _expert_use_of(document: Mapping[str, Any]) -> dict[str, ExpertUse]:
    return {domain: ExpertUse.from_dict(use) for domain, use in document.items()}


def measure_expert_use(
    stacked: StackedBase, registry: Registry, examples: Mapping[str, Sequence[Example]], batch_size: int = 16
) -> dict[str, ExpertUse]:
    """Of each stack in `composed` whose domain has `examples`, while it is on alone, at 1.0.

    Args:
        registry: that `stacked` was loaded from.
        examples: domain -> what its gates are shown.
    """

    def use(domain: str) -> ExpertUse:
        digest = stacked.digests[domain]
        counter = _Counter(load_stack(registry.blob_path(digest)), stacked.base.device)
        _run(stacked, domain, counter, examples[domain], batch_size)
        dispatches = counter.counts / counter.counts.sum(-1, keepdim=True)
        return ExpertUse(digest, counter.tokens, counter.projections, dispatches)

    domains = [domain for domain in stacked.digests if examples.get(domain)]
    used = stacked.processes.shared(domains, use, "measuring which experts are used", "domains")
    return dict(zip(domains, used, strict=True))


@torch.no_grad()
def _run(
    stacked: StackedBase, domain: str, counter: _Counter, examples: Sequence[Example], batch_size: int
) -> None:
    model, alone = stacked.base.model, stacked.bank.bind([{domain: 1.0}])
    for group in by_length(examples, batch_size):
        batch = collate(group).to(stacked.base.device)
        counter.begin(batch.acted_on(counter.applies))
        with stacked.hooks.composed(alone, counter, responses=batch.responses):
            model.get_decoder()(input_ids=batch.input_ids, use_cache=False)


class _Counter(DeltaSource):
    """A delta source that adds nothing, and counts what the gates of `stack` choose for the same inputs.

    Attributes:
        counts: [rounds, layers, P, N] float64 dispatches, on the CPU.
        tokens: shown so far.
    """

    def __init__(self, stack: StackTensors, device: torch.device) -> None:
        config = stack.config
        self.projections = config.projections
        self.top_k = config.top_k
        self.applies = config.applies
        self.counts = torch.zeros(
            stack.rounds, config.layers, len(self.projections), config.experts, dtype=torch.float64
        )
        self.tokens = 0
        self._real = torch.empty(0)
        self._gates = {
            (n, layer, p): stack.tensors[f"rounds.{n}.layers.{layer}.{p}.gate"].to(device)
            for n in range(stack.rounds)
            for layer in range(config.layers)
            for p in self.projections
        }

    def begin(self, real: Tensor) -> None:
        """The next forward's tokens: [B, T] bool, false at padding."""
        self._real = real
        self.tokens += int(real.sum())

    def corrections(self, layer: int, group: int, x: Tensor) -> Mapping[str, Sequence[Correction]]:
        shown = x[self._real]
        for i, projection in enumerate(self.projections):
            if projection in INPUT_GROUPS[group]:
                for n in range(len(self.counts)):
                    logits = F.linear(shown, self._gates[n, layer, projection].to(x.dtype))
                    chosen = gate_weights(logits, self.top_k) > 0
                    self.counts[n, layer, i] += chosen.sum(0).cpu()
        return {}
