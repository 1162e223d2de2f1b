"""The long form of every soak; `make soak`.

    python -m tests.soak [KIND]...

Prints how far it is and writes what it found to `benchmarks/results/`. Exit code 1 when anything failed.
"""

from __future__ import annotations

import asyncio
import tempfile
import traceback
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer

from benchmarks.instruments.options import application
from benchmarks.instruments.results import RESULTS, machine, markdown_table, write_results
from benchmarks.instruments.timing import say
from tests.soak import (
    fleet,
    guide,
    heavy,
    hostile,
    killing,
    mutants,
    overload,
    publishing,
    residency,
    schema,
    slow_readers,
    slowloris,
)
from tests.soak.outcome import Outcome, Say
from tests.soak.replicas import replicas
from tests.soak.server_process import Server, serving
from tests.soak.training_kills import training_kills
from tests.soak.world import STEADY_FLAGS, World

Soak = Callable[[Server, int, float, int, Say], Coroutine[Any, Any, Outcome]]


@dataclass(frozen=True)
class Served:
    """A soak of one server.

    Attributes:
        flags: of the server, for its world.
        publish: fills its registry.
        files: how many it may open; None for as many as this process.
    """

    soak: Soak
    flags: Callable[[World], Sequence[str]]
    publish: Callable[[World], None]
    files: int | None = None

    def __call__(self, world: World, count: int, seconds: float, seed: int) -> Outcome:
        self.publish(world)
        with serving(world, self.flags(world), self.files) as server:
            return asyncio.run(self.soak(server, count, seconds, seed, say))


def _nothing(world: World) -> None:
    """Start with an empty registry."""


def _kill(world: World, count: int, seconds: float, seed: int) -> Outcome:
    return asyncio.run(killing.killing(world, count, seconds, seed, say))


def _replicas(world: World, count: int, seconds: float, seed: int) -> Outcome:
    return replicas(world, count, seconds, seed, say)


def _training(world: World, count: int, seconds: float, seed: int) -> Outcome:
    return training_kills(world.directory, count, seconds, seed, say)


def _guide(world: World, count: int, seconds: float, seed: int) -> Outcome:
    return guide.guide(world.directory, seconds, say)


KINDS: dict[str, tuple[Callable[[World, int, float, int], Outcome], int, float]] = {
    "overload": (Served(overload.overload, lambda _: overload.FLAGS, overload.publish), 2000, 900),
    "residency": (Served(residency.residency, residency.flags, residency.publish), 2000, 900),
    "publish": (Served(publishing.publishing, publishing.flags, _nothing), 100, 120),
    "kill": (_kill, 50, 3600),
    "replicas": (_replicas, 100, 120),
    "fleet": (Served(fleet.fleet, lambda _: fleet.flags(), _nothing), 20, 600),
    "slow_readers": (
        Served(slow_readers.slow_readers, lambda _: (*STEADY_FLAGS, *slow_readers.FLAGS), _nothing),
        100,
        900,
    ),
    "slowloris": (
        Served(
            slowloris.slowloris, lambda _: (*STEADY_FLAGS, *slowloris.FLAGS), _nothing, slowloris.OPEN_FILES
        ),
        100,
        300,
    ),
    "training": (_training, 25, 1800),
    "guide": (_guide, 1, 1800),
    "hostile": (Served(hostile.hostile, lambda _: (*STEADY_FLAGS, *hostile.FLAGS), _nothing), 500, 900),
    "heavy": (Served(heavy.heavy, lambda _: STEADY_FLAGS, _nothing), 20, 600),
    "mutants": (Served(mutants.mutants, lambda _: STEADY_FLAGS, overload.publish), 10_000, 2400),
    "schema": (Served(schema.schema, lambda _: STEADY_FLAGS, overload.publish), 100, 600),
}
"""Kind -> the soak, and its count and seconds."""


def main(
    kinds: Annotated[
        list[str] | None, typer.Argument(help=f"Some of {', '.join(KINDS)}; all by default.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Requests, kills, ...; of each kind its own.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="Time limit; `publish` and `replicas` take all of it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn at random.")] = 0,
    output: Annotated[Path, typer.Option(help="Directory of the results.")] = RESULTS,
) -> None:
    """Load, faults and hostile clients against a real server over a tiny base, on this machine."""
    unknown = [kind for kind in kinds or () if kind not in KINDS]
    if unknown:
        raise typer.BadParameter(f"there is no {', '.join(unknown)}; there are {', '.join(KINDS)}")
    torch.set_num_threads(1)  # what is computed here is tiny
    facts = machine()
    failed = []
    for kind in kinds or KINDS:
        soak, its_count, its_seconds = KINDS[kind]
        its_count, its_seconds = count or its_count, seconds or its_seconds
        settings = {"count": its_count, "seconds": its_seconds, "seed": seed}
        say(f"{kind}: {settings}")
        begin = perf_counter()
        with tempfile.TemporaryDirectory() as directory:
            try:
                outcome = soak(World(Path(directory)), its_count, its_seconds, seed)
            except Exception as error:  # one soak that breaks does not keep the others from running
                traceback.print_exc()
                outcome = Outcome(failures=[f"broken off: {error!r}"])
        outcome.figures["total_s"] = perf_counter() - begin
        _write(kind, settings, facts, outcome, output)
        failed += [kind] if outcome.failures else []
    if failed:
        say(f"failed: {', '.join(failed)}")
        raise typer.Exit(1)


def _write(
    kind: str, settings: dict[str, float], facts: dict[str, Any], outcome: Outcome, output: Path
) -> None:
    document = {
        "machine": facts,
        "settings": settings,
        "passed": not outcome.failures,
        "outcomes": dict(sorted(outcome.counts.items())),
        "figures": outcome.figures,
        "failures": outcome.shown,
    }
    rows = [
        *sorted(outcome.counts.items()),
        *((name, f"{value:g}") for name, value in outcome.figures.items()),
    ]
    verdict = (
        "passed" if not outcome.failures else "FAILED\n\n" + "\n".join(f"- {text}" for text in outcome.shown)
    )
    text = f"{settings}: {verdict}\n\n" + markdown_table(("outcome or figure", "value"), rows)
    write_results(f"soak-{kind}", document, text, output)


app = application(main)

if __name__ == "__main__":
    app()
