"""A study as one command: settings from options, trainings from the cache, a file and a table at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.materials import Materials
from benchmarks.experiments.settings import Settings
from benchmarks.experiments.side_by_side import SideBySide
from benchmarks.experiments.trainings import Training
from benchmarks.instruments import options
from benchmarks.instruments.results import RESULTS, machine, write_results
from benchmarks.instruments.timing import Report, say
from brainstacks.base_files import base_name
from brainstacks.config import Quantization
from training.recipe.settings import StackRecipe
from training.rounds.allocator import keep_freed_memory
from training.runs.directory import RunDirectory
from training.runs.signals import StopRequest

DEFAULTS = Settings()

Data = Annotated[Path, typer.Option(help="Directory with <domain>/{train,validation}.jsonl.")]
Run = Annotated[Path, typer.Option(help="Where trainings are kept; give it again to go on.")]
KEPT = Path("runs/experiments")


@dataclass(frozen=True)
class Findings:
    """What a study found.

    Attributes:
        verdict: one line, made from the figures.
        tables: Markdown.
        figures: JSON values and `Spread`s.
    """

    verdict: str
    tables: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """One question.

    Attributes:
        name: of its module, and of its results: `experiment-<name>`.
        question: one sentence; the first of the command's help.
        trainings: all that it needs, as far as is known before any is made.
        find: measures them, and makes others. A signal ends a measurement at once: what is costly is kept.
        plain: its stacks are LoRAs of as many parameters as those of the settings (`Materials.lora`).
    """

    name: str
    question: str
    trainings: Callable[[Materials], list[Training]]
    find: Callable[[Laboratory], Findings]
    plain: bool = False


def run_studies(
    studies: Sequence[Study],
    settings: Settings,
    data: Path,
    run: Path,
    output: Path = RESULTS,
    report: Report = say,
    device: str = "auto",
    processes: int = 1,
) -> None:
    """Train what each study needs and no earlier one has trained, measure it, and write it.

    Args:
        processes: that train side by side, for studies whose trainings do not build on one another.

    Raises:
        ConfigError: the data does not fit the settings, or another process works in `run`.
        Interrupted: a stop was asked for; the same command goes on.
    """
    keep_freed_memory()
    facts = machine()
    stop = StopRequest()
    with RunDirectory(run / "cache") as cache, ExitStack() as opened:
        cache.check_identity({"kept": "trainings and measurements"})
        materials = Materials(settings, data, run / "cache", stop, device)
        several = None
        if processes > 1:
            pool = SideBySide(processes, settings, data, run / "cache", device, stop)
            several = opened.enter_context(pool).trained
        laboratory = Laboratory(materials, run / "cache", report, several)
        chosen = {**_facts(settings), "base": base_name(settings.base)}
        counts = {
            d: {s: len(materials.examples[d, s]) for s in ("train", "validation")} for d in settings.domains
        }
        for study in studies:
            laboratory.train_all(study.trainings(materials))
            report(f"{study.name}: measuring")
            found = study.find(laboratory)
            computed = materials.workshop(settings.quantization).base.dtype_name
            document = {
                "machine": facts,
                "question": study.question,
                "verdict": found.verdict,
                "settings": chosen,
                "compute": computed,
                "records": counts,
                **found.figures,
            }
            told = _told(settings, computed, materials.lora() if study.plain else settings.stack)
            text = f"{study.question}\n\n**{found.verdict}**\n\n{found.tables}\n\n{told}"
            write_results(f"experiment-{study.name}", document, text, output, report=report)


def _facts(settings: Settings) -> dict[str, Any]:
    """Those that all studies share, as JSON values."""
    return {f.name: getattr(settings, f.name) for f in fields(Settings)} | {
        name: asdict(getattr(settings, name)) for name in ("stack", "router")
    }


def _told(settings: Settings, computed: str, stack: StackRecipe) -> str:
    kind = f"plain LoRA r{stack.rank}"
    if stack.experts > 1:
        kind = f"MoE-LoRA {stack.experts} x r{stack.rank}, top {stack.top_k}"
    if stack.applies == "response":
        kind += ", on the response alone"
    return (
        f"Base {base_name(settings.base)}, {settings.quantization}, computed in {computed}; "
        f"{settings.steps} steps of {settings.batch_size} rows of up to {settings.max_tokens} tokens per "
        f"domain and round; {kind}, alpha {stack.alpha:g}; peak learning rate "
        f"{settings.learning_rate:g} where none is named; seeds {', '.join(map(str, settings.seeds))}; "
        f"{settings.validation} validation records per domain at most. Snapshots are chosen on other records."
    )


def command(*studies: Study) -> typer.Typer:
    """A program that runs `studies` in order."""

    def main(
        data: Data,
        run: Run = KEPT,
        seeds: Annotated[str, typer.Option(help="Separated by commas.")] = _joined(DEFAULTS.seeds),
        steps: Annotated[
            int, typer.Option(min=1, help="Optimiser steps per domain and round.")
        ] = DEFAULTS.steps,
        domains: Annotated[str, typer.Option(help="In curriculum order.")] = _joined(DEFAULTS.domains),
        long_domains: Annotated[
            str, typer.Option(help="Those that rounds and longer trainings are compared on.")
        ] = _joined(DEFAULTS.long_domains),
        learning_rate: Annotated[float, typer.Option(help="Peak.")] = DEFAULTS.learning_rate,
        max_tokens: Annotated[int, typer.Option(help="Longest row.")] = DEFAULTS.max_tokens,
        validation: Annotated[int, typer.Option(min=1, help="Records per domain.")] = DEFAULTS.validation,
        base: options.Base = DEFAULTS.base,
        quantization: options.Quantize = DEFAULTS.quantization,
        device: options.Device = "auto",
        output: options.Output = RESULTS,
    ) -> None:
        settings = Settings(
            base=base,
            quantization=cast(Quantization, quantization),
            domains=tuple(domains.split(",")),
            long_domains=tuple(long_domains.split(",")),
            seeds=tuple(_seeds(seeds)),
            steps=steps,
            learning_rate=learning_rate,
            max_tokens=max_tokens,
            validation=validation,
        )
        run_studies(studies, settings, data, run, output, device=device)

    questions = "\n\n".join(study.question for study in studies)
    module = studies[0].name if len(studies) == 1 else "run_all"
    main.__doc__ = (
        f"{questions}\n\nA killed command goes on where it was when it is given again.\n\n"
        f"A quick look: python -m benchmarks.experiments.{module} --data DIR --seeds 0 --steps 4"
    )
    return options.application(main)


def _joined(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


def _seeds(text: str) -> list[int]:
    if not all(part.isdecimal() for part in text.split(",")):
        raise typer.BadParameter(f"{text!r} is no list of seeds such as 0,1")
    return [int(part) for part in text.split(",")]
