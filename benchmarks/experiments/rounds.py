"""Residual boosting: rounds 1 to 3 against one longer round and one LoRA of three times the parameters.

    python -m benchmarks.experiments.rounds --data DIR

Three rounds of n steps, one round of 3n steps and the LoRA for 3n steps see equally many tokens; the three
rounds and the LoRA have equal parameters, the longer round a third of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.experiments import designs
from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.materials import Materials
from benchmarks.experiments.measurements import (
    HOW_SURE,
    Measurements,
    answer_tokens,
    nats_of_base,
    nats_under,
)
from benchmarks.experiments.study import Findings, Study, command
from benchmarks.experiments.trainings import Training

ROUNDS = 3
LONGER = f"one round, {ROUNDS} times the steps"
LORA = f"one LoRA, {ROUNDS} times the parameters and steps"


def _contestants(materials: Materials, domain: str, seed: int) -> dict[str, list[Training]]:
    """Name -> the stacks that are on together."""
    settings = materials.settings
    rounds = designs.rounds(settings, domain, seed, ROUNDS)
    found = {"1 round": rounds[:1]}
    found |= {f"{n} rounds": rounds[:n] for n in range(2, ROUNDS + 1)}
    found[LONGER] = [designs.alone(settings, [domain], seed, times=ROUNDS)]
    found[LORA] = [designs.alone(settings, [domain], seed, materials.lora(ROUNDS), times=ROUNDS)]
    return found


def _trainings(materials: Materials) -> list[Training]:
    settings = materials.settings
    return [
        training
        for seed in settings.seeds
        for domain in settings.long_domains
        for stacks in _contestants(materials, domain, seed).values()
        for training in stacks
    ]


def _find(lab: Laboratory) -> Findings:
    materials, settings = lab.materials, lab.settings
    domains = settings.long_domains
    nats = {"base": [nats_of_base(lab, domains)]}
    for seed in settings.seeds:
        of_seed: dict[str, dict[str, Sequence[float]]] = {}
        for domain in domains:
            for name, trainings in _contestants(materials, domain, seed).items():
                stacks = {str(number): training for number, training in enumerate(trainings)}
                stacked = lab.stacked(stacks, settings.quantization)
                found = nats_under(materials, stacked, {domain: dict.fromkeys(stacks, 1.0)})
                of_seed.setdefault(name, {}).update(found)
        for name, of_domains in of_seed.items():
            nats.setdefault(name, []).append(of_domains)
    measured = Measurements(answer_tokens(materials, domains), nats)
    most = f"{ROUNDS} rounds"
    gains = {f"{n} after {n - 1}": measured.difference(*_steps(n)) for n in range(2, ROUNDS + 1)}
    versus = {other: measured.difference(most, other) for other in (LONGER, LORA)}
    told = "; ".join(f"against {other} {difference}" for other, difference in versus.items())
    added = ", ".join(f"{difference} round {name}" for name, difference in gains.items())
    verdict = f"NLL of {most}: {told}. What each further round changes: {added}. Below 0, rounds help."
    figures = {
        "validation_nll": measured.to_dict(),
        "rounds_less_others": {name: found.to_dict() for name, found in versus.items()},
        "further_rounds": {name: found.to_dict() for name, found in gains.items()},
        "trainable_parameters": {
            "one round": materials.parameters(settings.stack),
            LORA: materials.parameters(materials.lora(ROUNDS)),
        },
    }
    return Findings(verdict, f"{measured.table('1 round')}\n\n{HOW_SURE}", figures)


def _steps(number: int) -> tuple[str, str]:
    return f"{number} rounds", "1 round" if number == 2 else f"{number - 1} rounds"


STUDY = Study(
    "rounds",
    "Are residual rounds better than one longer round, or than one bigger LoRA, for the same tokens?",
    _trainings,
    _find,
)
app = command(STUDY)

if __name__ == "__main__":
    app()
