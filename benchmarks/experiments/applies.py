"""What it costs that deltas act on the response alone, so that all compositions share the prompt.

    python -m benchmarks.experiments.applies --data DIR

Two curricula of plain LoRA stacks, alike but for where their deltas act. What sharing gains is not measured
here: `python -m benchmarks.shared_prompts` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

from benchmarks.experiments import designs
from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.materials import Materials
from benchmarks.experiments.measurements import (
    HOW_SURE,
    Measurements,
    Nats,
    answer_tokens,
    each_own,
    nats_of_base,
    nats_under,
    throughout,
)
from benchmarks.experiments.routers import routed
from benchmarks.experiments.study import Findings, Study, command
from benchmarks.experiments.trainings import Training
from brainstacks.config import Applies
from training.evaluation.intervals import Estimate

KINDS: tuple[Applies, ...] = get_args(Applies)
USES = ("routed", "only own", "ungated")

BOUND = 0.02
"""Nats on the mean, routed: for less the demo registry is to share prompts."""


def _curriculum(materials: Materials, kind: Applies, seed: int) -> dict[str, Training]:
    settings = materials.settings
    stack = replace(materials.lora(), applies=kind)
    return designs.curriculum(settings, seed, settings.earlier, stack)


def _trainings(materials: Materials) -> list[Training]:
    return [
        training
        for seed in materials.settings.seeds
        for kind in KINDS
        for training in _curriculum(materials, kind, seed).values()
    ]


def _measure(lab: Laboratory, kind: Applies, seed: int) -> dict[str, Nats]:
    materials, domains = lab.materials, lab.settings.domains
    stacks = _curriculum(materials, kind, seed)
    stacked = lab.stacked(stacks, lab.settings.quantization)
    everything = throughout(domains, dict.fromkeys(stacks, 1.0))
    return {
        f"{kind}: routed": routed(lab, stacks),
        f"{kind}: only own": nats_under(materials, stacked, each_own(domains)),
        f"{kind}: ungated": nats_under(materials, stacked, everything),
    }


def _find(lab: Laboratory) -> Findings:
    materials, settings = lab.materials, lab.settings
    nats = {"base": [nats_of_base(lab, settings.domains)]}
    for seed in settings.seeds:
        for kind in KINDS:
            for name, found in _measure(lab, kind, seed).items():
                nats.setdefault(name, []).append(found)
    measured = Measurements(answer_tokens(materials, settings.domains), nats)
    costs = {use: measured.difference(f"response: {use}", f"everywhere: {use}") for use in USES}
    figures = {
        "validation_nll": measured.to_dict(),
        "cost": {use: cost.to_dict() for use, cost in costs.items()},
    }
    return Findings(_verdict(costs), f"{measured.table('base')}\n\n{HOW_SURE}", figures)


def _verdict(costs: Mapping[str, Estimate]) -> str:
    """By how the composition is used."""
    low, high = costs["routed"].interval
    within = "is under" if high < BOUND else "is not under" if low >= BOUND else "cannot be told from"
    told = ", ".join(f"{cost} nats {use}" for use, cost in costs.items())
    return f"To act on the response alone costs {told}; routed that {within} {BOUND}."


STUDY = Study(
    "applies",
    "What does it cost that deltas act on the response alone?",
    _trainings,
    _find,
    plain=True,
)
app = command(STUDY)

if __name__ == "__main__":
    app()
