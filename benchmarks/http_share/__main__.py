"""What HTTP in the engine's own interpreter costs a step.

    python -m benchmarks.http_share

One process serves, as `python -m server` does. Its streams are read by another process, over HTTP; in turn
with that, the same requests run on the same engine and nobody reads them. What is between the two is what
HTTP costs a step: the event loop takes time of the cores, and holds the interpreter's lock while the engine's
thread wants it; and the client has the same cores here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, cast

import typer

from benchmarks.http_share import interpreter
from benchmarks.http_share.asks import MIXES, Mix, mixes
from benchmarks.http_share.bench import Bench
from benchmarks.http_share.figures import ALONE, HTTP, Case, tables
from benchmarks.http_share.server import listening, opened
from benchmarks.http_share.steps import StepLog
from benchmarks.instruments import options
from benchmarks.instruments.registries import served
from benchmarks.instruments.results import RESULTS, machine, rounds_note, write_results
from benchmarks.instruments.timing import Progress
from brainstacks.base_model import identify_base
from brainstacks.config import Quantization
from brainstacks.engine.async_engine import AsyncEngine
from server.settings import Settings

NAME = "http_share"
WARM_UP_SECONDS = 0.5


async def measure(
    engine: AsyncEngine,
    settings: Settings,
    of_mix: Mapping[str, Mix],
    counts: Sequence[int],
    tokens: int,
    seconds: float,
    rounds: int,
    profile_seconds: int,
) -> list[Case]:
    """Every case in turn, in each round; the samples after that.

    Args:
        counts: numbers of streams.
        tokens: of each answer.
        seconds: of each window.
    """
    log = StepLog()
    cases = [Case(count, mix, {ALONE: [], HTTP: []}, {}, {}) for count in counts for mix in of_mix]
    async with listening(engine, settings) as address:
        with log.noting(engine._engine):
            bench = Bench(engine, log, address, tokens)
            contestants = {ALONE: bench.in_process, HTTP: bench.over_http}
            for case in cases:
                for streams in contestants.values():
                    await bench.window(streams, of_mix[case.mix], case.streams, WARM_UP_SECONDS)
            progress = Progress(len(cases) * (rounds + (profile_seconds > 0)))
            for _ in range(rounds):
                for case in cases:
                    for name, streams in contestants.items():
                        window = await bench.window(streams, of_mix[case.mix], case.streams, seconds)
                        case.windows[name].append(window)
                    alone, http = (case.decode[each].rounds[-1] for each in (ALONE, HTTP))
                    progress.done(f"{case.streams} streams, {case.mix}: {alone:.1f} ms, {http:.1f} over HTTP")
            for case in cases if profile_seconds else ():
                for shares, holding in ((case.holds, True), (case.wants, False)):
                    look = interpreter.sampled(profile_seconds, holding=holding)
                    shares |= await bench.during(bench.over_http, of_mix[case.mix], case.streams, look)
                progress.done(f"{case.streams} streams, {case.mix}: who has the interpreter")
    return cases


def main(
    streams: Annotated[str, typer.Option(help="Streams at once, separated by commas.")] = "16,64",
    compositions: Annotated[str, typer.Option(help=f"Some of {','.join(MIXES)}.")] = ",".join(MIXES),
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement.")] = 6.0,
    rounds: options.Rounds = 5,
    tokens: Annotated[int, typer.Option(min=8, help="Tokens of each answer.")] = 256,
    profile_seconds: Annotated[
        int, typer.Option(min=0, help="Of each look at who has the interpreter; 0 leaves that out.")
    ] = 10,
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = None,
    device: options.Device = "auto",
    registry: options.Trained = options.DEMO_REGISTRY,
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """How much longer a decode step is while its streams are read over HTTP, and what of.

    Streamed chat, by mix: the base alone; one composition of four random r16 stacks; routed by the trained
    registry's router. Each stream asks again as soon as it has been answered. To see who has the interpreter
    takes py-spy (the extra `bench`) and the right to look into a process.

    A quick look: python -m benchmarks.http_share --compositions base --rounds 1 --profile-seconds 2
    """
    counts = options.positive_list(streams, "numbers of streams such as 16,64")
    wanted = options.some_of(compositions, MIXES)
    facts = machine()
    with served(identify_base(base), trained=registry, seed=seed) as stacks:
        settings = settings_of(base, quantization, device, stacks.path, max(counts))
        with opened(settings) as engine:
            facts["backend"] = engine.status.model.backend
            of_mix = {name: mix for name, mix in mixes(stacks).items() if name in wanted}
            cases = asyncio.run(
                measure(engine, settings, of_mix, counts, tokens, seconds, rounds, profile_seconds)
            )
    chosen = options.asked(
        base, quantization, device, streams=counts, seconds=seconds, rounds=rounds, tokens=tokens,
        profile_seconds=profile_seconds, seed=seed,
    )  # fmt: skip
    document = {"machine": facts, "settings": chosen, "cases": [case.to_document() for case in cases]}
    write_results(NAME, document, rounds_note(rounds) + tables(cases), output)


def settings_of(
    base: str, quantization: str | None, device: str, registry: Path, max_batch_size: int
) -> Settings:
    """Of a server that is open, and keeps no prompt's keys and values, as each is asked again."""
    return Settings(
        base=base,
        quantization=cast(Quantization, options.held(base, quantization)),
        device=device,
        registry=str(registry),
        port=0,
        api_key=(),
        max_batch_size=max_batch_size,
        prefix_caching=False,
    )


app = options.application(main)

if __name__ == "__main__":
    app()
