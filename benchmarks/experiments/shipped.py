"""The shipped registry against one LoRA of as many parameters that went through the same domains.

    python -m benchmarks.experiments.shipped --data DIR

The LoRA trains on the records that the registry's recipe gives, for as many steps of each domain, at the rank
whose parameters come nearest to those of all stacks together, and is measured on the same base. Two things it
has of its own. It acts everywhere, wherever the stacks act. And its learning rate is given, not searched: the
default is the one that `methods` took for a sequential LoRA, the lower of the two that were tried there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.experiments import designs
from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.materials import Materials
from benchmarks.experiments.measurements import (
    HOW_SURE,
    Measurements,
    Nats,
    answer_tokens,
    nats_under,
    throughout,
)
from benchmarks.experiments.settings import Settings
from benchmarks.experiments.study import KEPT, Data, Findings, Run, Study, run_studies
from benchmarks.experiments.trainings import Training
from benchmarks.instruments import options
from benchmarks.instruments.results import RESULTS, markdown_table
from brainstacks.stacks.registry import Registry
from training.evaluation.validation import load_served, route
from training.recipe.recipe import Recipe, load_recipe
from training.recipe.settings import RoundConfig, require

ROUTED, LORA = "shipped, routed", "sequential LoRA"
REGISTRY = Path("stacks_registry")
EVERYTHING = 1_000_000
"""Records: more than any domain has."""


@dataclass(frozen=True, kw_only=True)
class ShippedSettings(Settings):
    """Those of the recipe `plan`, which the registry was trained by."""

    plan: Recipe

    def recipe(self) -> Recipe:
        return self.plan

    def round(self, steps: int, learning_rate: float, seed: int) -> RoundConfig:
        """As a stack is trained, but to its end."""
        shared = super().round(steps, learning_rate, seed)
        own = ("steps", "learning_rate", "patience", "spike", "checkpoint_every", "seed")
        return replace(self.plan.round, **{name: getattr(shared, name) for name in own})


def settings_of(plan: Recipe, learning_rate: float) -> ShippedSettings:
    """What trains the LoRA as `plan` trains a stack, at a learning rate of its own.

    Raises:
        ConfigError: the domains of `plan` differ in steps, or have several rounds.
    """
    domains = tuple(domain.name for domain in plan.domains)
    uneven = [d.name for d in plan.domains if d.steps is not None or plan.rounds_of(d) > 1]
    require(
        not uneven,
        f"{', '.join(uneven)}: with steps of its own, or several rounds, a domain has another share of the "
        "LoRA than of the registry; give a recipe of one round and equal steps",
    )
    return ShippedSettings(
        plan=plan,
        base=plan.base,
        quantization=plan.quantization,
        domains=domains,
        long_domains=domains[:1],
        seeds=(plan.round.seed,),
        steps=plan.round.steps,
        batch_size=plan.round.batch_size,
        learning_rate=learning_rate,
        rates=(1.0,),
        warmup_steps=plan.round.warmup_steps,
        eval_every=plan.round.eval_every,
        max_tokens=plan.data.max_tokens,
        records=EVERYTHING,
        selection=plan.data.selection,
        validation=plan.data.validation,
        earlier=plan.earlier_stacks,
        stack=plan.stack,
        router=plan.router,
    )


def _sequence(materials: Materials) -> list[Training]:
    settings = materials.settings
    lora = materials.lora(len(settings.domains))
    return designs.sequence(settings, settings.seeds[0], lora)


def _find(registry: Path, lab: Laboratory) -> Findings:
    materials, settings = lab.materials, lab.settings
    last = _sequence(materials)[-1]
    served, router = load_served(materials.workshop(settings.quantization).base, Registry(registry))
    bank = lab.bank({"all": last}, settings.quantization)
    lora = replace(served, bank=bank, digests={"all": lab.key(last)})  # on the same base: it rounds alike
    routed: Nats = {
        d: served.losses(materials.validation(d), route(served, router, materials.validation(d)))
        for d in settings.domains
    }
    everything = throughout(settings.domains, dict.fromkeys(served.digests, 1.0))
    nats = {
        "base": nats_under(materials, served, throughout(settings.domains, {})),
        "shipped, ungated": nats_under(materials, served, everything),
        ROUTED: routed,
        LORA: nats_under(materials, lora, throughout(settings.domains, {"all": 1.0})),
    }
    measured = Measurements(
        answer_tokens(materials, settings.domains), {name: [found] for name, found in nats.items()}
    )
    less = {name: measured.difference(ROUTED, name) for name in nats if name != ROUTED}
    counts = {
        "all stacks": len(settings.domains) * materials.parameters(settings.stack),
        LORA: materials.parameters(last.stack),
    }
    text = "\n\n".join(
        (
            measured.table(ROUTED),
            markdown_table(["", "trainable parameters"], list(counts.items())),
            f"{HOW_SURE} {_apart(settings, last)} There is one training of each.",
        )
    )
    figures = {
        "validation_nll": measured.to_dict(),
        "routed_less_others": {name: found.to_dict() for name, found in less.items()},
        "trainable_parameters": counts,
        "stacks": dict(served.digests),
    }
    verdict = ", ".join(f"{found} against {name}" for name, found in less.items())
    return Findings(f"Mean NLL of the shipped registry, routed: {verdict}.", text, figures)


def _apart(settings: Settings, lora: Training) -> str:
    """What besides the curriculum sets the LoRA apart from the stacks."""
    places = {"everywhere": "on prompt and response", "response": "on the response alone"}
    return (
        f"The LoRA's rank is {lora.stack.rank}. It acts {places[lora.stack.applies]}, and a stack of the "
        f"recipe {places[settings.stack.applies]}. Its peak learning rate, {lora.rate:g}, was given: none "
        "beside it was tried here."
    )


def study(registry: Path) -> Study:
    return Study(
        "shipped",
        "Is the shipped registry better than one LoRA of as many parameters, trained domain by domain?",
        _sequence,
        partial(_find, registry),
    )


def main(
    data: Data,
    recipe: Annotated[str, typer.Option(help="That the registry was trained by.")] = "demo",
    registry: Annotated[Path, typer.Option(help="With all the recipe's domains, and a router.")] = REGISTRY,
    run: Run = KEPT,
    learning_rate: Annotated[float, typer.Option(help="Of the LoRA, at its peak; not searched.")] = 4e-4,
    device: options.Device = "auto",
    output: options.Output = RESULTS,
) -> None:
    """Is the shipped registry better than one LoRA of as many parameters, trained domain by domain?

    A killed command goes on where it was when it is given again.
    """
    settings = settings_of(load_recipe(recipe), learning_rate)
    run_studies([study(registry)], settings, data, run, output, device=device)


app = options.application(main)

if __name__ == "__main__":
    app()
