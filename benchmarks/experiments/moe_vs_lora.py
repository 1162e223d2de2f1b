"""MoE-LoRA against one LoRA of equal trainable parameters and tokens.

    python -m benchmarks.experiments.moe_vs_lora --data DIR

Both train on the same examples in the same order. The paper has MoE-LoRA reach the LoRA's final loss in 2.5
times fewer steps. A learning rate that suits one of them decides as much as the architecture does, so both
are also compared at others, and each at its best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from statistics import fmean

from benchmarks.experiments import designs
from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.materials import Materials
from benchmarks.experiments.measurements import (
    HOW_SURE,
    Measurements,
    answer_tokens,
    each_own,
    nats_of_base,
    nats_under,
)
from benchmarks.experiments.parameters import Parameters, parameters
from benchmarks.experiments.study import Findings, Study, command
from benchmarks.experiments.trainings import Training
from benchmarks.instruments.results import Spread, markdown_table

PAPER = 2.5
KINDS = ("MoE-LoRA", "LoRA")

Curve = Sequence[tuple[int, float]]
"""(step, selection NLL), the start first."""


def steps_to(curve: Curve, target: float) -> float | None:
    """Where `curve` first comes down to `target`, interpolated between evaluations; None if it never does."""
    for (a, before), (b, after) in pairwise(curve):
        if before <= target:
            return float(a)
        if after <= target:
            return a + (b - a) * (before - target) / (before - after)
    return None


def _contestants(materials: Materials) -> dict[str, list[dict[str, Training]]]:
    """Name -> for each seed, domain -> training."""
    settings = materials.settings
    return {
        f"{kind} at {settings.learning_rate * scale:g}": [
            {d: designs.alone(settings, [d], seed, stack, scale=scale) for d in settings.domains}
            for seed in settings.seeds
        ]
        for scale in settings.rates
        for kind, stack in zip(KINDS, (settings.stack, materials.lora()), strict=True)
    }


def _trainings(materials: Materials) -> list[Training]:
    return [t for seeds in _contestants(materials).values() for one in seeds for t in one.values()]


def _curve(lab: Laboratory, stacks: dict[str, Training]) -> Curve:
    """Selection NLL by step, the mean over the domains."""
    histories = [lab.trained(t).history for t in stacks.values()]
    return [
        (int(points[0]["step"]), fmean(p["val_loss"] for p in points))
        for points in zip(*histories, strict=True)
    ]


def _find(lab: Laboratory) -> Findings:
    settings = lab.settings
    contestants = _contestants(lab.materials)
    measured = _measured(lab, contestants)
    curves = {name: [_curve(lab, stacks) for stacks in seeds] for name, seeds in contestants.items()}
    speed = {rate: _speed(curves, f"at {settings.learning_rate * rate:g}") for rate in settings.rates}
    tokens = {
        name: sum(lab.trained(t).tokens for stacks in seeds for t in stacks.values())
        for name, seeds in contestants.items()
    }
    moe, lora = list(contestants)[:2]
    lowest = {name: fmean(min(loss for _, loss in c) for c in found) for name, found in curves.items()}
    best = [min((n for n in lowest if n.startswith(kind)), key=lowest.__getitem__) for kind in KINDS]
    equal, each = measured.difference(moe, lora), measured.difference(*best)
    verdict = (
        f"{_told(speed[1.0])} Final validation NLL of MoE-LoRA less that of LoRA: {equal} at one learning "
        f"rate, {each} with each at the better of {len(settings.rates)} on the selection records."
    )
    text = "\n\n".join(
        (
            measured.table(lora),
            _parameter_table(lab.materials),
            _curve_table(curves, tokens),
            f"{HOW_SURE} Curves: selection NLL by step, mean over domains and seeds.",
        )
    )
    figures = {
        "validation_nll": measured.to_dict(),
        "moe_less_lora": equal.to_dict(),
        "moe_less_lora_each_at_its_best": {"contestants": best, **each.to_dict()},
        "lora_steps_over_moe_steps_to_its_final_loss": {str(rate): found for rate, found in speed.items()},
        "selection_curves": {name: [list(map(list, c)) for c in found] for name, found in curves.items()},
        "trainable_parameters": {kind: asdict(count) for kind, count in _counts(lab.materials).items()},
        "tokens": tokens,
    }
    return Findings(verdict, text, figures)


def _measured(lab: Laboratory, contestants: dict[str, list[dict[str, Training]]]) -> Measurements:
    """Each domain under its own stack."""
    materials, settings = lab.materials, lab.settings
    own = each_own(settings.domains)
    nats = {"base": [nats_of_base(lab, settings.domains)]}
    for name, seeds in contestants.items():
        stacked = [lab.stacked(stacks, settings.quantization) for stacks in seeds]
        nats[name] = [nats_under(materials, one, own) for one in stacked]
    return Measurements(answer_tokens(materials, settings.domains), nats)


def _counts(materials: Materials) -> dict[str, Parameters]:
    identity = materials.identity
    stacks = (materials.settings.stack, materials.lora())
    return {
        kind: parameters(stack, identity.dims, identity.layers)
        for kind, stack in zip(KINDS, stacks, strict=True)
    }


def _speed(curves: dict[str, list[Curve]], suffix: str) -> list[float | None]:
    """Per seed: the LoRA's steps over those in which MoE-LoRA reaches the LoRA's final loss."""
    found = []
    for moe, lora in zip(curves[f"MoE-LoRA {suffix}"], curves[f"LoRA {suffix}"], strict=True):
        steps = steps_to(moe, lora[-1][1])
        found.append(lora[-1][0] / steps if steps else None)
    return found


def _told(speed: Sequence[float | None]) -> str:
    reached = [s for s in speed if s is not None]
    if len(reached) == len(speed):
        times = Spread.of(reached)
        return f"MoE-LoRA reaches the LoRA's final loss in {times} times fewer steps (paper: {PAPER:g})."
    return (
        f"With {len(speed) - len(reached)} of {len(speed)} seeds MoE-LoRA does not reach the LoRA's final "
        f"loss in as many steps (paper: in {PAPER:g} times fewer)."
    )


def _parameter_table(materials: Materials) -> str:
    rows = [[kind, c.deltas, c.gates, c.noise, c.total] for kind, c in _counts(materials).items()]
    return markdown_table(
        ["trainable parameters", "deltas", "gates", "noise weights (training only)", "in all"], rows
    )


def _curve_table(curves: dict[str, list[Curve]], tokens: dict[str, int]) -> str:
    steps = [step for step, _ in next(iter(curves.values()))[0]]
    rows = [
        [name, *(f"{fmean(c[i][1] for c in found):.3f}" for i in range(len(steps))), tokens[name]]
        for name, found in curves.items()
    ]
    return markdown_table(["step", *map(str, steps), "tokens trained on"], rows)


STUDY = Study(
    "moe_vs_lora",
    "Does a MoE-LoRA stack learn faster, or better, than one LoRA of equal trainable parameters and tokens?",
    _trainings,
    _find,
)
app = command(STUDY)

if __name__ == "__main__":
    app()
