"""What the earlier stacks do while a new one trains: all on, none, or sampled subsets and weights.

    python -m benchmarks.experiments.earlier_stacks --data DIR

The paper keeps all of them on at 1.0; the router later applies subsets at fractional weights. The one that
composes best is the one to ship.
"""

from __future__ import annotations

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
from benchmarks.experiments.routers import oracle, routed
from benchmarks.experiments.study import Findings, Study, command
from benchmarks.experiments.trainings import Training
from training.recipe.settings import EarlierMode

MODES: tuple[EarlierMode, ...] = get_args(EarlierMode)
USES = ("ungated", "only own", "routed")


def _trainings(materials: Materials) -> list[Training]:
    settings = materials.settings
    return [
        training
        for mode in MODES
        for seed in settings.seeds
        for training in designs.curriculum(settings, seed, mode).values()
    ]


def _measure(lab: Laboratory, mode: EarlierMode, seed: int) -> dict[str, Nats]:
    materials, settings = lab.materials, lab.settings
    stacks = designs.curriculum(settings, seed, mode)
    stacked = lab.stacked(stacks, settings.quantization)
    everything = throughout(settings.domains, dict.fromkeys(stacks, 1.0))
    own = each_own(settings.domains)
    return {
        f"{mode}: ungated": nats_under(materials, stacked, everything),
        f"{mode}: only own": nats_under(materials, stacked, own),
        f"{mode}: routed": routed(lab, stacks),
    }


def _find(lab: Laboratory) -> Findings:
    materials, settings = lab.materials, lab.settings
    nats = {"base": [nats_of_base(lab, settings.domains)]}
    oracles: dict[str, list[Nats]] = {}
    for mode in MODES:
        for seed in settings.seeds:
            for name, found in _measure(lab, mode, seed).items():
                nats.setdefault(name, []).append(found)
            best = oracle(lab, designs.curriculum(settings, seed, mode))
            oracles.setdefault(f"{mode}: oracle", []).append(best)
    measured = Measurements(answer_tokens(materials, settings.domains), nats)
    first = measured.first(settings.oracle).together(oracles)
    winners = {use: min(MODES, key=lambda m: measured.mean(f"{m}: {use}").value) for use in USES}
    winners["oracle"] = min(MODES, key=lambda m: first.mean(f"{m}: oracle").value)
    routed_less = {
        mode: measured.difference(f"{winners['routed']}: routed", f"{mode}: routed")
        for mode in MODES
        if mode != winners["routed"]
    }
    margins = ", ".join(f"{found} against {mode}" for mode, found in routed_less.items())
    verdict = (
        "Lowest mean NLL: "
        + ", ".join(f"`{mode}` {use}" for use, mode in winners.items())
        + f". `{winners['routed']}`, routed: {margins}."
    )
    text = (
        f"{measured.table('base')}\n\nThe first {settings.oracle} records of each domain, on which all "
        f"combinations were measured:\n\n{first.table('base')}\n\n{HOW_SURE}"
    )
    figures = {
        "validation_nll": measured.to_dict(),
        "first_records": first.to_dict(),
        "winners": winners,
        "routed_winner_less_others": {mode: found.to_dict() for mode, found in routed_less.items()},
    }
    return Findings(verdict, text, figures)


STUDY = Study(
    "earlier_stacks",
    "Should the stacks of earlier domains be all on, off, or sampled while a new one trains?",
    _trainings,
    _find,
)
app = command(STUDY)

if __name__ == "__main__":
    app()
