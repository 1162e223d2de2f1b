"""Ours against the ways in which people train one base on several domains, at equal total parameters.

    python -m benchmarks.experiments.methods --data DIR

All methods see each domain for equally many steps. Joint training sees all domains at once, which a growing
set of domains does not allow: it is the upper bound. A perfect domain label is not to be had either.
"""

from __future__ import annotations

from benchmarks.experiments import designs
from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.materials import Materials
from benchmarks.experiments.measurements import (
    HOW_SURE,
    Measurements,
    Nats,
    answer_tokens,
    nats_of_base,
    nats_under,
    throughout,
)
from benchmarks.experiments.routers import routed
from benchmarks.experiments.study import Findings, Study, command
from benchmarks.experiments.trainings import Training
from benchmarks.results import markdown_table

BASE = "base"
ROUTED = "ours, routed"
UNGATED = "ours, ungated"
LABELLED = "ours, perfect domain label"
SEQUENTIAL = "sequential LoRA"
JOINT = "joint LoRA (upper bound)"
LORAS = "LoRA per domain, perfect domain label"
O_LORA = "O-LoRA, summed"


def _designs(materials: Materials, seed: int) -> dict[str, dict[str, Training]]:
    """Name -> the stacks that the method ends with, by name."""
    settings = materials.settings
    small, large = materials.lora(), materials.lora(len(settings.domains))
    penalised = designs.curriculum(settings, seed, "all", small, orthogonality=settings.orthogonality)
    return {
        ROUTED: designs.independent(settings, seed),
        LORAS: designs.independent(settings, seed, small),
        SEQUENTIAL: {"all": designs.sequence(settings, seed, large)[-1]},
        JOINT: {"all": designs.alone(settings, settings.domains, seed, large)},
        O_LORA: penalised,
    }


def _trainings(materials: Materials) -> list[Training]:
    return [
        training
        for seed in materials.settings.seeds
        for stacks in _designs(materials, seed).values()
        for training in stacks.values()
    ]


def _measure(lab: Laboratory, seed: int) -> dict[str, Nats]:
    materials, settings = lab.materials, lab.settings
    stacks = _designs(materials, seed)
    composed = {name: lab.composed(found, settings.quantization) for name, found in stacks.items()}

    def everything(name: str) -> Nats:
        weights = throughout(settings.domains, dict.fromkeys(stacks[name], 1.0))
        return nats_under(materials, composed[name], weights)

    def labelled(name: str) -> Nats:
        return nats_under(materials, composed[name], {d: {d: 1.0} for d in settings.domains})

    return {
        ROUTED: routed(lab, stacks[ROUTED]),
        UNGATED: everything(ROUTED),
        LABELLED: labelled(ROUTED),
        SEQUENTIAL: everything(SEQUENTIAL),
        JOINT: everything(JOINT),
        LORAS: labelled(LORAS),
        O_LORA: everything(O_LORA),
    }


def _find(lab: Laboratory) -> Findings:
    materials, settings = lab.materials, lab.settings
    nats = {BASE: [nats_of_base(lab, settings.domains)]}
    for seed in settings.seeds:
        for name, found in _measure(lab, seed).items():
            nats.setdefault(name, []).append(found)
    measured = Measurements(answer_tokens(materials, settings.domains), nats)
    less = {name: measured.difference(ROUTED, name) for name in nats if name != ROUTED}
    better = [name for name, found in less.items() if found.sign < 0]
    worse = [name for name, found in less.items() if found.sign > 0]
    open_ = [name for name in less if name not in better and name not in worse]
    verdict = "; ".join(
        f"ours, routed, {how} {', '.join(names)}"
        for how, names in (
            ("is better than", better),
            ("is worse than", worse),
            ("cannot be told from", open_),
        )
        if names
    )
    counts = {
        name: sum(materials.parameters(t.stack) for t in stacks.values())
        for name, stacks in _designs(materials, settings.seeds[0]).items()
    }
    text = "\n\n".join(
        (
            measured.table(ROUTED),
            markdown_table(["", "trainable parameters"], [[name, n] for name, n in counts.items()]),
            f"{HOW_SURE} The router's parameters come on top of ours. "
            f"O-LoRA: lambda {settings.orthogonality:g}.",
        )
    )
    figures = {
        "validation_nll": measured.to_dict(),
        "routed_less_others": {name: found.to_dict() for name, found in less.items()},
        "trainable_parameters": counts,
    }
    return Findings(f"{verdict}.", text, figures)


STUDY = Study(
    "methods",
    "Do independent stacks and a router beat sequential, joint, per-domain and orthogonal LoRAs?",
    _trainings,
    _find,
)
app = command(STUDY)

if __name__ == "__main__":
    app()
