"""Everything that only a GPU can tell, in one command: first whether it is right, then how fast it is.

    python -m benchmarks.gpu

Each part is a command of its own, in a process of its own, with a limit: one that fails, hangs or breaks the
device takes no other with it. What each said, and whether it passed, is written after each; figures are the
parts' own results. Parts that do not fit into `--minutes` are left out, and said to be.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.instruments import options
from benchmarks.instruments.checkout import ROOT
from benchmarks.instruments.results import RESULTS, machine, markdown_table, write_results
from benchmarks.instruments.timing import say

NAME = "gpu"
LAST_LINES = 40
"""Of what a part said, which are kept."""
LEAST_SECONDS = 20.0
"""That a part is begun with."""


@dataclass(frozen=True)
class Part:
    """Attributes:
    command: arguments of this interpreter.
    seconds: that it may take.
    """

    name: str
    command: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """Attributes:
    status: `passed`, `failed (exit status)`, `stopped` at its limit, or `left out` for want of time.
    """

    part: str
    status: str
    seconds: float
    said: tuple[str, ...] = ()


def parts(output: Path) -> list[Part]:
    """All of them: right first, then fast."""
    there = ("--output", str(output))
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    decode = ("-m", "benchmarks.gpu_decode", *there, "--rounds", "2")
    on_gpu = ("--device", "cuda", *there, "--rounds")
    return [
        Part("kernels", (*tests, "tests/gpu_kernels", "tests/layers/test_fused_norms.py"), 120),
        Part("whole requests", ("-m", "benchmarks.gpu_check", *there), 120),
        Part("tests for a GPU", (*tests, "-m", "gpu"), 90),
        Part("decode, 8B", decode, 180),
        Part("a training step", ("-m", "benchmarks.train_step", *on_gpu, "3"), 90),
        Part("loads while others decode", ("-m", "benchmarks.hot_load", *on_gpu, "1"), 90),
        Part("peers", ("-m", "benchmarks.decode", *on_gpu, "2", "--batch-sizes", "1,16",
                       "--peers", "transformers,PEFT"), 120),
        Part("decode, 12B", (*decode, "--decoder", "Gemma-3-12B", "--batches", "1,32"), 180),
    ]  # fmt: skip


def run(part: Part, seconds: float) -> Outcome:
    """One part, for at most so long."""
    started = time.perf_counter()
    status = "passed"
    with subprocess.Popen(
        [sys.executable, *part.command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            status = "stopped"
    if status == "passed" and process.returncode:
        status = f"failed ({process.returncode})"
    taken = round(time.perf_counter() - started, 1)
    return Outcome(part.name, status, taken, tuple(said.splitlines()[-LAST_LINES:]))


def run_all(every: Sequence[Part], minutes: float, output: Path) -> list[Outcome]:
    """Each part that still fits; results are written after each."""
    ends = time.perf_counter() + 60 * minutes
    facts, done = machine(), []
    for part in every:
        left = ends - time.perf_counter()
        if left < min(LEAST_SECONDS, part.seconds):
            done.append(Outcome(part.name, "left out", 0.0))
        else:
            say(f"{part.name}: at most {min(left, part.seconds):.0f} s; {left:.0f} s are left")
            done.append(run(part, min(left, part.seconds)))
            say("\n".join(done[-1].said[-3:]))
        document: dict[str, Any] = {"machine": facts, "minutes": minutes, "parts": [asdict(o) for o in done]}
        table = markdown_table(("part", "status", "seconds"), [(o.part, o.status, o.seconds) for o in done])
        write_results(NAME, document, table, output)
    return done


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="For all parts.")] = 8.0,
    only: Annotated[str, typer.Option(help="Parts, separated by semicolons; all without.")] = "",
    output: options.Output = RESULTS,
) -> None:
    """The checks and figures that need a GPU."""
    every = parts(output)
    names = [name for name in only.split(";") if name]
    unknown = set(names) - {part.name for part in every}
    if unknown:
        known = "; ".join(part.name for part in every)
        raise typer.BadParameter(f"{', '.join(unknown)}; parts are {known}")
    if not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device is there; what can be checked without is in `make test`")
    done = run_all([part for part in every if not names or part.name in names], minutes, output)
    if any(outcome.status.startswith("failed") for outcome in done):
        raise typer.Exit(1)


app = options.application(main)

if __name__ == "__main__":
    app()
