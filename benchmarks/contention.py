"""Decode speed while other processes want the cores.

    python -m benchmarks.contention

A step ends when its slowest thread does. What is lost beyond the engine's fair share of the cores is lost to
that.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter
from typing import Annotated, Any

import torch
import typer

from benchmarks.instruments import options
from benchmarks.instruments.results import (
    RESULTS,
    Spread,
    machine,
    markdown_table,
    rounds_note,
    write_results,
)
from benchmarks.instruments.timing import Clock, Progress
from benchmarks.serving import traffic
from benchmarks.serving.engine_batch import Reply, advance, fixed, request
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import TextEvent
from brainstacks.errors import BrainstacksError

NAME = "contention"

BUSY = """
import os
parent = os.getppid()
print("busy", flush=True)
while os.getppid() == parent:  # it does not outlive a benchmark that is killed
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that each keep a core busy; they end with the block, however it ends."""
    with ExitStack() as started:
        rivals = []
        for _ in range(processes):
            command = [sys.executable, "-c", BUSY]
            process = started.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            started.callback(process.kill)  # before Popen's own exit, which waits
            rivals.append(process)
        for process in rivals:
            if process.stdout is not None:
                process.stdout.readline()
        yield


def fair_share(cores: int, threads: int, processes: int) -> float:
    """What is left to `threads` that compute beside busy processes, of the cores that they have alone.

    min(1, C / (T + P)) of a core for each of T threads, of min(T, C) cores.
    """
    each = min(1.0, cores / (threads + processes))
    return threads * each / min(threads, cores)


def decode_rate(
    engine: StepEngine,
    prompts: Sequence[Sequence[int]],
    seconds: float,
    rivals: int = 0,
    clock: Clock = perf_counter,
) -> float:
    """Tokens per second of the base alone, of all rows, over about `seconds` beside `rivals` busy processes.

    These start when all rows decode. The rows' answers are as long as the context allows, and dropped when
    the time is over: it is exceeded by one step at most.

    Raises:
        BrainstacksError: the engine refused a request, or failed.
    """
    counts = [0] * len(prompts)
    errors: list[BrainstacksError] = []

    def sink(row: int, reply: Reply) -> None:
        if isinstance(reply, BrainstacksError):
            errors.append(reply)
        elif isinstance(reply, TextEvent):
            counts[row] += len(reply.token_ids)

    names = [f"row-{row}" for row in range(len(prompts))]
    try:
        for row, (name, prompt) in enumerate(zip(names, prompts, strict=True)):
            longest = engine.max_context - len(prompt)
            engine.add(request(name, prompt, longest, fixed({})), partial(sink, row))
        while min(counts) == 0 and not errors:
            advance(engine)
        with busy(rivals):
            before, begin = sum(counts), clock()
            now = begin
            while now - begin < seconds and engine.has_work and not errors:
                advance(engine)
                now = clock()
    finally:
        for name in names:
            engine.abort(name)
    if errors:
        raise errors[0]
    return (sum(counts) - before) / (now - begin)


def main(
    processes: Annotated[str, typer.Option(help="Busy processes, separated by commas.")] = "0,2,8",
    batch_sizes: Annotated[str, typer.Option(help="Rows that decode, separated by commas.")] = "1,16",
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement.")] = 4.0,
    rounds: options.Rounds = 5,
    prompt_tokens: options.PromptTokens = 32,
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """Decode speed of the base alone beside busy processes, and how that compares with a fair share.

    The fair share is what the cores leave to the engine's threads if all that want to run are given the same.
    One warm-up per batch size is not counted.

    A quick look: python -m benchmarks.contention --rounds 1 --seconds 1
    """
    batches = options.positive_list(batch_sizes, "batch sizes such as 1,16")
    rivals = options.number_list(processes, "numbers of processes such as 0,2,8")
    facts = machine()
    loaded = options.load(base, quantization, device)
    engine = StepEngine(loaded, None, EngineConfig(max_batch_size=max(batches), prefix_caching=False))
    facts["backend"] = engine.backend.name
    prompts = traffic.random_prompts(loaded.vocab_size, prompt_tokens, max(batches), seed)
    rates: dict[tuple[int, int], list[float]] = {(batch, n): [] for batch in batches for n in rivals}
    for batch in batches:
        decode_rate(engine, prompts[:batch], min(seconds, 1.0))
    progress = Progress(rounds * len(rates))
    for _ in range(rounds):
        for (batch, n), found in rates.items():
            found.append(decode_rate(engine, prompts[:batch], seconds, n))
            progress.done(f"{batch} rows beside {n} busy processes: {found[-1]:.1f} tok/s")
    document, table = report(rates, os.cpu_count() or 1, torch.get_num_threads())
    chosen = options.asked(
        base, quantization, device, seconds=seconds, rounds=rounds, prompt_tokens=prompt_tokens, seed=seed
    )
    write_results(
        NAME, {"machine": facts, "settings": chosen, "cases": document}, rounds_note(rounds) + table, output
    )


def report(
    rates: dict[tuple[int, int], list[float]], cores: int, threads: int
) -> tuple[list[dict[str, Any]], str]:
    """Of (batch, busy processes) -> tokens per second of each round; the least number of processes is what
    the others are compared with."""
    documents: list[dict[str, Any]] = []
    rows: list[list[object]] = []
    alone = min(n for _, n in rates)
    for (batch, n), found in rates.items():
        share = fair_share(cores, threads, n) / fair_share(cores, threads, alone)
        ratio = Spread.ratio(found, rates[batch, alone])
        of_share = Spread.of(value / share for value in ratio.rounds)
        rate = Spread.of(found)
        rows.append([batch, n, rate, ratio, f"{share:.2f}", of_share])
        documents.append(
            {
                "batch_size": batch,
                "busy_processes": n,
                "tokens_per_second": rate,
                "of_undisturbed": ratio,
                "fair_share": share,
                "of_fair_share": of_share,
            }
        )
    header = ["rows", "busy processes", "decode, tok/s", "of undisturbed", "fair share", "of fair share"]
    return documents, markdown_table(header, rows)


app = options.application(main)

if __name__ == "__main__":
    app()
