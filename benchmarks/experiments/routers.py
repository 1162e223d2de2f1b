"""What a trained router applies to the validation records, and what the best combinations would be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.measurements import Nats
from benchmarks.experiments.trainings import Training
from brainstacks.routing.router import Router
from brainstacks.stacks.router_artifact import RouterMetadata
from training.evaluation.validation import route
from training.router.outcomes import measure, measure_all
from training.router.prompts import router_prompts
from training.router.stacked_base import StackedBase
from training.router.training import fit


def routed(lab: Laboratory, stacks: Mapping[str, Training]) -> Nats:
    """NLL of the validation records under what a router, trained for these stacks, applies to each."""
    settings, materials = lab.settings, lab.materials
    stacked = lab.stacked(stacks, settings.quantization)
    facts = {
        "stacks": list(stacked.digests.items()),  # their order is that of the router's domains
        "router": asdict(settings.router),
        "prompts": {d: [s.digest for s in lab.materials.data[d].sources] for d in settings.domains},
        "data": _data(lab),
    }

    def found() -> dict[str, list[float]]:
        router = _trained(lab, stacked)
        nats = {}
        for domain in settings.domains:
            examples = materials.validation(domain)
            nats[domain] = stacked.losses(examples, route(stacked, router, examples))
        return nats

    nats: Nats = lab.remembered("routed", facts, found)
    return nats


def oracle(lab: Laboratory, stacks: Mapping[str, Training]) -> Nats:
    """The lowest NLL of the first validation records over all combinations and softer weights of the best."""
    settings, materials = lab.settings, lab.materials
    stacked = lab.stacked(stacks, settings.quantization)
    levels, min_gain = settings.router.soft_levels, settings.router.min_gain
    facts = {
        "stacks": dict(stacked.digests),
        "search": [list(levels), min_gain, settings.oracle],
        "data": _data(lab),
    }

    def found() -> dict[str, list[float]]:
        nats = {}
        for domain in settings.domains:
            pairs = [(domain, e) for e in materials.validation(domain)[: settings.oracle]]
            outcomes = measure(stacked, pairs, levels, min_gain)
            nats[domain] = [o.oracle * len(o.example.response) for o in outcomes]
        return nats

    nats: Nats = lab.remembered("oracle", facts, found)
    return nats


def _trained(lab: Laboratory, stacked: StackedBase) -> Router:
    """A router for the stacks of `composed`; outcomes that were measured before are not measured again."""
    settings = lab.settings.router
    data = {d: lab.materials.data[d] for d in stacked.digests}
    prompts = router_prompts(data, settings, stacked.tokenizer)
    held = [(d, example) for d, found in prompts.items() for example in found.held_out]
    pairs = [(d, example) for d, found in prompts.items() for example in found.train]
    facts = {"stacks": dict(stacked.digests), "levels": settings.soft_levels, "min_gain": settings.min_gain}
    file = lab.file("outcomes", facts, "jsonl")
    outcomes = measure_all(
        stacked, [*pairs, *held], file, settings.soft_levels, settings.min_gain, lab.report
    )
    config = settings.config(tuple(stacked.digests), stacked.base.identity.hidden_size)
    metadata = RouterMetadata(config, dict(stacked.digests), stacked.base.identity.ref)
    train, held_out = outcomes[: len(pairs)], outcomes[len(pairs) :]
    unmeasured = {d: found.unmeasured for d, found in prompts.items()}
    network, _ = fit(metadata, stacked, train, unmeasured, held_out, settings, report=lab.report)
    return Router(metadata, network)


def _data(lab: Laboratory) -> dict[str, str]:
    return {f"{d}/{split}": value for (d, split), value in lab.materials.digests.items()}
