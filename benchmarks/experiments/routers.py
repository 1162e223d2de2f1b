"""What a trained router applies to the validation records, and what the best combinations would be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.measurements import Nats
from benchmarks.experiments.trainings import Training
from brainstacks.config import MetaRouterConfig
from brainstacks.routing.router import Router
from brainstacks.stacks.router_artifact import RouterMetadata
from training.composition import Composed
from training.outcomes import measure, measure_all
from training.router_prompts import router_prompts
from training.router_training import fit
from training.validation import route


def routed(lab: Laboratory, stacks: Mapping[str, Training]) -> Nats:
    """NLL of the validation records under what a router, trained for these stacks, applies to each."""
    settings, materials = lab.settings, lab.materials
    composed = lab.composed(stacks, settings.quantization)
    facts = {"stacks": dict(composed.digests), "router": asdict(settings.router), "data": _data(lab)}

    def found() -> dict[str, list[float]]:
        router = _trained(lab, composed)
        nats = {}
        for domain in settings.domains:
            examples = materials.validation(domain)
            nats[domain] = composed.losses(examples, route(composed, router, examples))
        return nats

    nats: Nats = lab.remembered("routed", facts, found)
    return nats


def oracle(lab: Laboratory, stacks: Mapping[str, Training]) -> Nats:
    """The lowest NLL of the first validation records over all combinations and softer weights of the best."""
    settings, materials = lab.settings, lab.materials
    composed = lab.composed(stacks, settings.quantization)
    levels, min_gain = settings.router.soft_levels, settings.router.min_gain
    facts = {
        "stacks": dict(composed.digests),
        "search": [list(levels), min_gain, settings.oracle],
        "data": _data(lab),
    }

    def found() -> dict[str, list[float]]:
        nats = {}
        for domain in settings.domains:
            pairs = [(domain, e) for e in materials.validation(domain)[: settings.oracle]]
            outcomes = measure(composed, pairs, levels, min_gain)
            nats[domain] = [o.oracle * len(o.example.response) for o in outcomes]
        return nats

    nats: Nats = lab.remembered("oracle", facts, found)
    return nats


def _trained(lab: Laboratory, composed: Composed) -> Router:
    """A router for the stacks of `composed`; outcomes that were measured before are not measured again."""
    settings = lab.settings.router
    prompts = [
        (d, router_prompts(lab.materials.data[d], settings, composed.tokenizer)) for d in composed.digests
    ]
    held = [(d, example) for d, found in prompts for example in found.held_out]
    pairs = [(d, example) for d, found in prompts for example in found.train]
    facts = {"stacks": dict(composed.digests), "levels": settings.soft_levels, "min_gain": settings.min_gain}
    file = lab.file("outcomes", facts, "jsonl")
    outcomes = measure_all(
        composed, [*pairs, *held], file, settings.soft_levels, settings.min_gain, report=lab.report
    )
    config = MetaRouterConfig(
        domains=tuple(composed.digests),
        token_dim=composed.base.identity.hidden_size,
        hidden_dim=settings.hidden_dim,
        sequence_length=settings.sequence_length,
        floors=settings.floors,
        gate_threshold=settings.gate_threshold,
        dropout=settings.dropout,
    )
    metadata = RouterMetadata(config, dict(composed.digests), composed.base.identity.ref)
    train, held_out = outcomes[: len(pairs)], outcomes[len(pairs) :]
    unmeasured = {d: found.unmeasured for d, found in prompts}
    network, _ = fit(metadata, composed, train, unmeasured, held_out, settings, report=lab.report)
    return Router(metadata, network)


def _data(lab: Laboratory) -> dict[str, str]:
    return {f"{d}/{split}": value for (d, split), value in lab.materials.digests.items()}
