"""Two checkouts of this project against each other, in turns: what a change costs or gives.

    python -m benchmarks.checkouts ../before

Each checkout loads the same base and registry in a process of its own, and both answer the same prompts turn
by turn, the one first that was last before. They know nothing of each other but `ComposedModel.generate`, so
that checkouts that are far apart can be compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from typing import IO, Annotated, Any

import typer

from benchmarks.instruments import options
from benchmarks.instruments.results import RESULTS, machine, markdown_table, write_results

NAME = "checkouts"
HERE = Path(__file__).parents[1]
CASES = ("base, 1 row", "base, 16 rows", "ungated, 1 row", "ungated, 16 rows", "16 choices, 16 rows")

# What each checkout runs: a case by its number from each line that it is sent, and back its seconds.
_CHILD = """
import json, random, sys, time
from brainstacks import ComposedModel

base, registry, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = ComposedModel.load(base, registry=registry)
chance = random.Random(0)
prompts = [[chance.randrange(model.base.vocab_size) for _ in range(8)] for _ in range(16)]
some = lambda: chance.sample(list(model.domains), min(2, len(model.domains)))
choices = [{domain: chance.uniform(0.3, 1.0) for domain in some()} for _ in range(16)]
cases = [(1, None), (16, None), (1, "ungated"), (16, "ungated"), (16, choices)]
for line in sys.stdin:
    rows, weights = cases[int(line)]
    started, cpu = time.perf_counter(), time.process_time()
    model.generate(prompts[:rows], weights, max_tokens=tokens, temperature=0.0, ignore_eos=True)
    seconds = [time.perf_counter() - started, time.process_time() - cpu]
    print("seconds", json.dumps(seconds), flush=True)
"""


class Checkout:
    """A process that answers with the code in `directory`."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(directory)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD, *arguments],
            cwd=directory, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def seconds(self, case: int) -> tuple[float, float]:
        """Of the clock and of the processor."""
        self._stream("stdin").write(f"{case}\n")
        self._stream("stdin").flush()
        for line in self._stream("stdout"):
            if line.startswith("seconds "):
                wall, cpu = json.loads(line.removeprefix("seconds "))
                return wall, cpu
        raise RuntimeError(f"a checkout ended with status {self._process.wait()}; its error is above")

    def close(self) -> None:
        self._stream("stdin").close()
        self._process.wait()

    def _stream(self, name: str) -> IO[str]:
        stream: IO[str] | None = getattr(self._process, name)
        if stream is None:
            raise ValueError(f"the process has no {name}")
        return stream


def _commit(directory: Path) -> str:
    """Of a checkout; with a + where files differ from it."""
    command = ["git", "-C", str(directory), "describe", "--always", "--dirty=+"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _middle(ratios: Sequence[float]) -> str:
    low, median, high = quantiles(ratios, n=4)
    return f"{median:.3f} ({low:.3f}..{high:.3f})"


def main(
    other: Annotated[Path, typer.Argument(help="The other checkout: what this one is compared with.")],
    turns: Annotated[int, typer.Option(min=2, help="Turns of each case and checkout.")] = 30,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens per answer.")] = 24,
    base: options.Base = options.DEFAULT_BASE,
    registry: options.Trained = options.DEMO_REGISTRY,
    output: options.Output = RESULTS,
) -> None:
    """Seconds of this checkout over those of the other, for the same answers."""
    arguments = (base, str(registry.resolve()), str(tokens))
    both = [Checkout(directory.resolve(), *arguments) for directory in (HERE, other)]
    found: list[list[list[tuple[float, float]]]] = [[[], []] for _ in CASES]
    try:
        for turn in range(turns + 1):
            for case in range(len(CASES)):
                for which in (0, 1) if turn % 2 else (1, 0):
                    seconds = both[which].seconds(case)
                    if turn:  # the first one warms up
                        found[case][which].append(seconds)
    finally:
        for one in both:
            one.close()
    documents: list[dict[str, Any]] = []
    rows = []
    for name, (ours, theirs) in zip(CASES, found, strict=True):
        pairs = list(zip(ours, theirs, strict=True))
        wall, cpu = ([mine[i] / its[i] for mine, its in pairs] for i in (0, 1))
        fastest = min(wall for wall, _ in ours) / min(wall for wall, _ in theirs)
        documents.append({"case": name, "wall": wall, "cpu": cpu, "fastest": fastest})
        rows.append([name, _middle(wall), _middle(cpu), f"{fastest:.3f}"])
    commits = [_commit(directory) for directory in (HERE, other)]
    text = f"{commits[0]} over {commits[1]}, turn by turn: median (quartiles). Less than 1 is faster.\n\n"
    text += markdown_table(["", "seconds", "CPU seconds", "fastest turns"], rows)
    document = {
        "machine": machine(),
        "turns": turns,
        "tokens": tokens,
        "commits": commits,
        "cases": documents,
    }
    write_results(NAME, document, text, output)


app = options.application(main)

if __name__ == "__main__":
    app()
