"""The routers: each tells, for a prompt, what weight each stack has. All read the base's own activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.adapter_routers.spectra import MeanCoefficients, Spectral
from brainstacks.config import MetaRouterConfig
from brainstacks.layers.bank import BoundStack
from brainstacks.layers.hooks import Correction, DeltaSource
from brainstacks.layers.projections import INPUT_GROUPS
from brainstacks.routing.features import pad_prompts
from brainstacks.routing.policy import active_domains
from brainstacks.routing.reader import Reader, Served
from brainstacks.routing.router import Router
from training.data.batches import TOKENS, within_budget
from training.data.encoding import Example
from training.router.prompts import prompt_features
from training.router.stacked_base import StackedBase, Weights, routed_weights

Prompts = Sequence[Sequence[int]]
Believe = Callable[[Prompts], Sequence[Weights]]
"""Prompts -> domain -> 0..1 of each."""

TEMPERATURES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
"""Of the softmax over prototypes, of which training prompts choose."""


@dataclass(frozen=True)
class Contestant:
    """A router.

    Attributes:
        believe: what it tells of each stack.
        apply: what it applies where it tells that, prompt by prompt.
        unit: the weight above which its stack is on, where stacks are on or off.
    """

    believe: Believe
    unit: float
    apply: Callable[[Sequence[Weights]], list[Weights]] = list


def ours(stacked: StackedBase, router: Router) -> Contestant:
    """The registry's meta-router and its policy, as served."""

    def believe(prompts: Prompts) -> list[Weights]:
        return in_batches(prompts, partial(router.probabilities, stacked.base))

    return Contestant(believe, 0.0, partial(routed_weights, stacked, router))


def by_signature(stacked: StackedBase) -> Contestant | None:
    """The routing signatures that the stacks' files carry, as served without a router; None without any."""
    if not stacked.signatures:
        return None
    signed = {d: Served(stacked.digests[d], signature) for d, signature in stacked.signatures.items()}
    reader = Reader(None, signed, stacked.base.device)

    def believe(prompts: Prompts) -> list[Weights]:
        return [reading.probabilities for reading in reader.read(stacked.base, prompts)]

    def apply(told: Sequence[Weights]) -> list[Weights]:
        return [{d: row[d] for d in active_domains(row, reader.gate_threshold)} for row in told]

    return Contestant(partial(in_batches, route=believe), 0.0, apply)


def nearest_prototype(
    stacked: StackedBase, config: MetaRouterConfig, known: Mapping[str, Sequence[Example]]
) -> Contestant:
    """Each domain's mean features, compared by cosine from the middle of all domains; their softmax.

    Args:
        known: domain -> training prompts, which choose its temperature too.
    """
    means = {
        d: _mean_features(config, stacked, [e.prompt for e in examples]) for d, examples in known.items()
    }
    prototypes = torch.stack([rows.mean(0) for rows in means.values()])
    middle = prototypes.mean(0)

    def similarities(features: Tensor) -> Tensor:
        return F.normalize(features - middle, dim=-1) @ F.normalize(prototypes - middle, dim=-1).T

    every = similarities(torch.cat(list(means.values())))
    labels = torch.tensor([i for i, rows in enumerate(means.values()) for _ in rows])
    temperature = min(TEMPERATURES, key=lambda t: float(F.cross_entropy(every / t, labels)))

    def believe(prompts: Prompts) -> list[Weights]:
        found = similarities(_mean_features(config, stacked, prompts))
        return _named(tuple(known), (found / temperature).softmax(-1))

    return Contestant(believe, 1 / len(known))


def spectral(stacked: StackedBase, rule: Spectral) -> Contestant:
    """Arrow or SpectR, one weight per stack and prompt: the mean of its coefficients."""

    def believe(prompts: Prompts) -> list[Weights]:
        ids, mask = _padded(stacked, prompts)
        probe = MeanCoefficients(rule, mask)
        _read(stacked, ids, probe)
        return _named(tuple(stacked.digests), torch.tensor(probe.weights()))

    return Contestant(partial(in_batches, route=believe), 1 / len(stacked.digests))


def logo(stacked: StackedBase, top: int, *, entropy: bool) -> Contestant:
    """LoGo (arXiv 2511.07129): the k stacks with the strongest signal, by their shares of it.

    The signal is of a stack's own output o at the prompt's last token, in the last layer's first projection
    that the stack has (the query's): ||o||, or 1 / entropy(softmax(o)).
    """
    signal = _inverse_entropy if entropy else _norm

    def believe(prompts: Prompts) -> list[Weights]:
        ids, mask = _padded(stacked, prompts)
        probe = LastOutputs(stacked, mask.sum(1) - 1)
        _read(stacked, ids, probe)
        signals = torch.stack([signal(output.float()) for output in probe.outputs], -1)
        kept, places = signals.topk(min(top, signals.shape[1]), dim=-1)
        shares = kept / kept.sum(-1, keepdim=True)
        return _named(tuple(stacked.digests), torch.zeros_like(signals).scatter(-1, places, shares))

    return Contestant(partial(in_batches, route=believe), 1 / len(stacked.digests))


class LastOutputs(DeltaSource):
    """Corrects nothing, and keeps what each stack alone would add in the last layer.

    Args:
        last: [B] int64, the last token of each prompt.

    Attributes:
        outputs: [B, d_out] of each stack, of the first projection that it has.
    """

    def __init__(self, stacked: StackedBase, last: Tensor) -> None:
        self._layer = stacked.base.identity.layers - 1
        self._last = last
        self._stacks: list[BoundStack] = [
            stack
            for domain in stacked.digests
            for stack in stacked.bank.bind([{domain: 1.0}] * len(last)).stacks
        ]
        self.outputs: list[Tensor] = [torch.empty(0)] * len(self._stacks)

    def corrections(self, layer: int, group: int, x: Tensor) -> Mapping[str, Sequence[Correction]]:
        if layer == self._layer:
            for number, stack in enumerate(self._stacks):
                projection, _, d_out = stack.stack.shape.dims[0]
                if projection in INPUT_GROUPS[group]:
                    nothing = x.new_zeros(*x.shape[:-1], d_out)
                    output = stack.corrections(layer, group, x)[projection](nothing)
                    self.outputs[number] = output[torch.arange(len(output), device=output.device), self._last]
        return {}


def in_batches(prompts: Prompts, route: Believe) -> list[Weights]:
    """`route` of any number of prompts, those of like length together."""
    found: list[Weights] = [{}] * len(prompts)
    for rows in within_budget([len(p) for p in prompts], TOKENS):
        for i, weights in zip(rows, route([prompts[i] for i in rows]), strict=True):
            found[i] = weights
    return found


@torch.no_grad()
def _read(stacked: StackedBase, ids: Tensor, probe: DeltaSource) -> None:
    with stacked.hooks.composed(probe):
        stacked.base.model.get_decoder()(input_ids=ids, use_cache=False)


def _padded(stacked: StackedBase, prompts: Prompts) -> tuple[Tensor, Tensor]:
    return pad_prompts(prompts, max(map(len, prompts)), stacked.base.device)


def _mean_features(config: MetaRouterConfig, stacked: StackedBase, prompts: Prompts) -> Tensor:
    """[N, d] float32, the mean over each prompt's tokens."""
    return torch.stack([rows.mean(0) for rows in prompt_features(config, stacked, prompts)])


def _norm(output: Tensor) -> Tensor:
    norms: Tensor = output.norm(dim=-1)
    return norms


def _inverse_entropy(output: Tensor) -> Tensor:
    logs = output.log_softmax(-1)
    return 1 / -(logs.exp() * logs).sum(-1)


def _named(domains: Sequence[str], rows: Tensor) -> list[Weights]:
    return [dict(zip(domains, row, strict=True)) for row in rows.tolist()]
