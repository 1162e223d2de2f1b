"""Ours against the ways in which people train one base on several domains, at equal total parameters.

    python -m benchmarks.experiments.methods --data DIR

All methods see each domain for equally many steps. Joint training sees all domains at once, which a growing
set of domains does not allow: it is the upper bound. A perfect domain label is not to be had either. One
learning rate does not suit them all, least of all the LoRAs of a multiple of the rank: each method trains at
all `rates` of the settings, which multiplies the study's cost by their number, and selection records choose.
Two rates bracket no optimum: the table says where the one that was taken has none tried beyond it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

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
from benchmarks.experiments.settings import Settings
from benchmarks.experiments.study import Findings, Study, command
from benchmarks.experiments.trainings import Training
from benchmarks.instruments.results import markdown_table
from training.evaluation.intervals import Estimate
from training.router.stacked_base import Weights

BASE = "base"
ROUTED = "ours, routed"
UNGATED = "ours, ungated"
LABELLED = "ours, perfect domain label"
"""Each domain's stack with those that it was trained on top of."""
ROUTED_LORAS = "LoRA stacks in our curriculum, routed"
"""Ours with one expert and no gate, at equal parameters: what the mixture of experts is worth here."""
SEQUENTIAL = "sequential LoRA"
JOINT = "joint LoRA (upper bound)"
LORAS = "LoRA per domain, perfect domain label"
O_LORA = "O-LoRA, summed"


Stacks = Mapping[str, Training]
"""What a method ends with, by name."""


def _designs(materials: Materials, seed: int, scale: float) -> dict[str, Stacks]:
    """Method -> its stacks, trained at a multiple of the learning rate."""
    settings = materials.settings
    small, large = materials.lora(), materials.lora(len(settings.domains))
    penalty = settings.orthogonality
    return {
        ROUTED: designs.curriculum(settings, seed, settings.earlier, scale=scale),
        ROUTED_LORAS: designs.curriculum(settings, seed, settings.earlier, small, scale=scale),
        LORAS: designs.independent(settings, seed, small, scale=scale),
        SEQUENTIAL: {"all": designs.sequence(settings, seed, large, scale)[-1]},
        JOINT: {"all": designs.alone(settings, settings.domains, seed, large, scale=scale)},
        O_LORA: designs.curriculum(settings, seed, "all", small, scale=scale, orthogonality=penalty),
    }


def _trainings(materials: Materials) -> list[Training]:
    settings = materials.settings
    return [
        training
        for seed, scale in product(settings.seeds, settings.rates)
        for stacks in _designs(materials, seed, scale).values()
        for training in stacks.values()
    ]


def _as_trained(settings: Settings) -> dict[str, Weights]:
    """Of our curriculum: the composition that each domain's stack was trained in."""
    if settings.earlier == "none":
        return each_own(settings.domains)
    return {d: dict.fromkeys(settings.domains[: i + 1], 1.0) for i, d in enumerate(settings.domains)}


def _all_on(domains: Sequence[str], stacks: Stacks) -> dict[str, Weights]:
    return throughout(domains, dict.fromkeys(stacks, 1.0))


def _selection_nll(lab: Laboratory) -> dict[str, dict[float, float]]:
    """Method -> multiple of the learning rate -> NLL of the selection records, mean over domains and seeds.

    What is routed counts as its stacks were trained: a router is trained for the chosen stacks alone.
    """
    materials, settings = lab.materials, lab.settings
    tokens = answer_tokens(materials, settings.domains, "selection")
    losses: dict[str, dict[float, float]] = {}
    for scale in settings.rates:
        nats: dict[str, list[Nats]] = {}
        for seed in settings.seeds:
            for name, stacks in _designs(materials, seed, scale).items():
                if name in (ROUTED, ROUTED_LORAS):
                    weights = _as_trained(settings)
                elif name == LORAS:
                    weights = each_own(settings.domains)
                else:
                    weights = _all_on(settings.domains, stacks)
                stacked = lab.stacked(stacks, settings.quantization)
                nats.setdefault(name, []).append(nats_under(materials, stacked, weights, "selection"))
        measured = Measurements(tokens, nats)
        for name in nats:
            losses.setdefault(name, {})[scale] = measured.mean(name).value
    return losses


def _measure(lab: Laboratory, stacks: Mapping[str, Stacks]) -> dict[str, Nats]:
    """The validation records under each method's `stacks`."""
    materials, settings = lab.materials, lab.settings
    stacked = {name: lab.stacked(found, settings.quantization) for name, found in stacks.items()}

    def everything(name: str) -> Nats:
        return nats_under(materials, stacked[name], _all_on(settings.domains, stacks[name]))

    return {
        ROUTED: routed(lab, stacks[ROUTED]),
        UNGATED: everything(ROUTED),
        LABELLED: nats_under(materials, stacked[ROUTED], _as_trained(settings)),
        ROUTED_LORAS: routed(lab, stacks[ROUTED_LORAS]),
        SEQUENTIAL: everything(SEQUENTIAL),
        JOINT: everything(JOINT),
        LORAS: nats_under(materials, stacked[LORAS], each_own(settings.domains)),
        O_LORA: everything(O_LORA),
    }


def _find(lab: Laboratory) -> Findings:
    materials, settings = lab.materials, lab.settings
    selection = _selection_nll(lab)
    chosen = {name: min(losses, key=losses.__getitem__) for name, losses in selection.items()}
    nats = {BASE: [nats_of_base(lab, settings.domains)]}
    for seed in settings.seeds:
        stacks = {name: _designs(materials, seed, scale)[name] for name, scale in chosen.items()}
        for name, found in _measure(lab, stacks).items():
            nats.setdefault(name, []).append(found)
    measured = Measurements(answer_tokens(materials, settings.domains), nats)
    less = {name: measured.difference(ROUTED, name) for name in nats if name != ROUTED}
    counts = {
        name: sum(materials.parameters(t.stack) for t in stacks.values())
        for name, stacks in _designs(materials, settings.seeds[0], 1.0).items()
    }
    rates = {name: settings.learning_rate * scale for name, scale in chosen.items()}
    tried = [f"{settings.learning_rate * scale:g}" for scale in settings.rates]
    rows = [
        [name, n, *(f"{loss:.3f}" for loss in selection[name].values()), _taken(settings, chosen[name])]
        for name, n in counts.items()
    ]
    columns = ["", "trainable parameters", *(f"selection NLL at {rate}" for rate in tried), "rate taken"]
    text = "\n\n".join(
        (
            measured.table(ROUTED),
            markdown_table(columns, rows),
            f"{HOW_SURE} Of each method, the learning rate with the lowest selection NLL (mean over "
            "domains and seeds) is measured; beyond the lowest and highest tried may be a better one. What "
            "is routed is chosen with a perfect domain label. Routers' parameters come on top. O-LoRA: "
            f"lambda {settings.orthogonality:g}.",
        )
    )
    figures = {
        "validation_nll": measured.to_dict(),
        "routed_less_others": {name: found.to_dict() for name, found in less.items()},
        "selection_nll": {
            name: dict(zip(tried, losses.values(), strict=True)) for name, losses in selection.items()
        },
        "learning_rates": rates,
        "trainable_parameters": counts,
    }
    return Findings(_verdict(less), text, figures)


def _taken(settings: Settings, scale: float) -> str:
    """A learning rate, and whether what lies beyond it was tried."""
    edges = {max(settings.rates): ", the highest tried", min(settings.rates): ", the lowest tried"}
    return f"{settings.learning_rate * scale:g}{edges.get(scale, '')}"


def _verdict(less: Mapping[str, Estimate]) -> str:
    """What the intervals of ours, routed, less each other method allow to say."""
    signs = {-1: "is better than", 1: "is worse than", 0: "cannot be told from"}
    told = {how: [name for name, found in less.items() if found.sign == sign] for sign, how in signs.items()}
    return "; ".join(f"ours, routed, {how} {', '.join(names)}" for how, names in told.items() if names) + "."


STUDY = Study(
    "methods",
    "Do stacks and a router beat sequential, joint, per-domain and orthogonal LoRAs?",
    _trainings,
    _find,
)
app = command(STUDY)

if __name__ == "__main__":
    app()
