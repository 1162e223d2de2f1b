"""The null-space projection: off, output side (the paper's) or input side.

    python -m benchmarks.experiments.null_space --data DIR

Every stack trains on top of all earlier ones, as in the paper. What matters is what the later stacks do to
earlier domains when all are on, and what the projection costs the stack itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

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
    throughout,
)
from benchmarks.experiments.study import Findings, Study, command
from benchmarks.experiments.trained import Trained
from benchmarks.experiments.trainings import Training
from benchmarks.instruments.results import Spread, markdown_table
from training.curriculum.forgetting import ForgettingMatrix, measure_row

SECOND_TABLE = (
    "Of the second table: median (min..max) over seeds, in nats, of ungated losses, and of gains on the "
    "selection records of all domains but the first. Captured energy is the share of what earlier stacks "
    "write, or earlier inputs hold, that the directions span, over stacks and seeds."
)

SIDES: Mapping[str, Literal["output", "input"] | None] = {"off": None, "output": "output", "input": "input"}


def _trainings(materials: Materials) -> list[Training]:
    settings = materials.settings
    return [
        training
        for side in SIDES.values()
        for seed in settings.seeds
        for training in designs.curriculum(settings, seed, "all", null_space=side).values()
    ]


def forgetting(lab: Laboratory, stacks: Mapping[str, Training]) -> ForgettingMatrix:
    """The matrix of a curriculum's `stacks`, in their order, on the validation records."""
    materials, quantization = lab.materials, lab.settings.quantization
    facts = {
        "stacks": [lab.key(t) for t in stacks.values()],
        "data": [materials.digests[d, "validation"] for d in stacks],
    }

    def measured() -> dict[str, Any]:
        workshop, bank = materials.workshop(quantization), lab.bank(stacks, quantization)
        examples = {d: materials.validation(d) for d in stacks}
        matrix = ForgettingMatrix()
        for number, domain in enumerate(stacks):
            so_far = list(stacks)[: number + 1]
            row = measure_row(workshop.base.model, workshop.hooks, bank, so_far, examples)
            matrix = matrix.add(domain, row)
        return matrix.to_dict()

    return ForgettingMatrix.from_dict(lab.remembered("forgetting", facts, measured))


def _find(lab: Laboratory) -> Findings:
    curricula = {
        name: [designs.curriculum(lab.settings, seed, "all", null_space=side) for seed in lab.settings.seeds]
        for name, side in SIDES.items()
    }
    measured = _measured(lab, curricula)
    matrices = {name: [forgetting(lab, stacks) for stacks in seeds] for name, seeds in curricula.items()}
    later = {
        name: [[lab.trained(t) for t in list(stacks.values())[1:]] for stacks in seeds]
        for name, seeds in curricula.items()
    }
    rows = {name: _row(matrices[name], later[name], later["off"]) for name in SIDES}
    less = {n: measured.difference(f"{n}: ungated", "off: ungated") for n in SIDES if n != "off"}
    verdict = "; ".join(
        f"{name} side: ungated NLL {found} against off, forgetting {rows[name]['forgetting']} against "
        f"{rows['off']['forgetting']}, {rows[name]['gain given up']} nats of a stack's own gain given up"
        for name, found in less.items()
    )
    table = markdown_table(
        ["null space", *rows["off"]],
        [
            [name, *("-" if figure is None else figure for figure in row.values())]
            for name, row in rows.items()
        ],
    )
    figures = {
        "validation_nll": measured.to_dict(),
        "ungated_less_off": {name: found.to_dict() for name, found in less.items()},
        "forgetting": rows,
        "directions": {name: [[t.directions for t in one] for one in later[name]] for name in less},
        "matrices": {name: [m.to_dict() for m in found] for name, found in matrices.items()},
    }
    return Findings(
        f"{verdict}.", f"{measured.table('off: ungated')}\n\n{table}\n\n{HOW_SURE} {SECOND_TABLE}", figures
    )


def _measured(lab: Laboratory, curricula: Mapping[str, list[dict[str, Training]]]) -> Measurements:
    materials, settings = lab.materials, lab.settings
    everything = throughout(settings.domains, dict.fromkeys(settings.domains, 1.0))
    own = each_own(settings.domains)
    nats = {"base": [nats_of_base(lab, settings.domains)]}
    for name, seeds in curricula.items():
        stacked = [lab.stacked(stacks, settings.quantization) for stacks in seeds]
        nats[f"{name}: ungated"] = [nats_under(materials, one, everything) for one in stacked]
        nats[f"{name}: only own"] = [nats_under(materials, one, own) for one in stacked]
    return Measurements(answer_tokens(materials, settings.domains), nats)


def _row(
    matrices: Sequence[ForgettingMatrix], later: list[list[Trained]], off: list[list[Trained]]
) -> dict[str, Spread | None]:
    """Figures per seed; `later` holds, of each seed, the trainings after the first domain's."""
    gains, without = ([fmean(t.gain for t in one) for one in seeds] for seeds in (later, off))
    energies = [t.directions["captured_energy"]["mean"] for one in later for t in one if t.directions]
    return {
        "forgetting": Spread.of(m.forgetting() for m in matrices),
        "backward transfer": Spread.of(m.backward_transfer() for m in matrices),
        "gain where it trained": Spread.of(gains),
        "gain given up": Spread.of(b - a for a, b in zip(gains, without, strict=True)),
        "captured energy": Spread.of(energies) if energies else None,
    }


STUDY = Study(
    "null_space",
    "Does projecting a stack out of what earlier ones use lessen forgetting, and what does it cost?",
    _trainings,
    _find,
)
app = command(STUDY)

if __name__ == "__main__":
    app()
