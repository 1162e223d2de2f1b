"""How long a server takes to be ready: the first time, when it converts and compiles, and later.

    python -m benchmarks.first_start

Each round has a cache directory of its own (`XDG_CACHE_HOME`) and starts `python -m server` twice on it.
What Python's imports take is measured by a process that does nothing else, last, so that nothing is compiled
in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from benchmarks.instruments import options
from benchmarks.instruments.checkout import ROOT
from benchmarks.instruments.registries import served
from benchmarks.instruments.results import RESULTS, Spread, machine, markdown_table, met, write_results
from benchmarks.instruments.timing import Progress
from benchmarks.serving.server_process import running
from brainstacks.base_model import identify_base

NAME = "first_start"

IMPORTS = """
import server.__main__
import brainstacks.engine.async_engine
from brainstacks.base_files import quiet_transformers
with quiet_transformers():
    import bitsandbytes
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
"""
"""What every start imports; of transformers the packaged base's family too, which it imports when asked."""

FIRST, LATER, BARE = "first start", "later start", "imports alone"
MOST_CPU_SECONDS = {FIRST: 25.0, LATER: 5.0}
"""Targets: CPU seconds until the server is ready, those of the imports not counted."""


@dataclass(frozen=True)
class Start:
    """One process, from its start until it was ready.

    Attributes:
        wall_s, cpu_s: seconds; of CPU, user and system, of all threads and of children that have ended.
        log: what it said meanwhile.
    """

    wall_s: float
    cpu_s: float
    log: tuple[str, ...] = ()


def environment(cache: Path) -> dict[str, str]:
    """This process's, with every cache in `cache`."""
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    return {**kept, "XDG_CACHE_HOME": str(cache)}


def start_server(registry: Path, flags: list[str], variables: Mapping[str, str]) -> Start:
    """Start a server, wait until it answers, and end it."""
    begin = perf_counter()
    with running(registry, flags, variables) as server:
        log = tuple(line for line in server.startup if " --base " not in line)  # options have paths
        return Start(perf_counter() - begin, _cpu_seconds(psutil.Process(server.pid)), log)


def import_alone(variables: Mapping[str, str]) -> Start:
    """The same imports in a process that then ends."""
    begin = perf_counter()
    before = psutil.Process().cpu_times()
    subprocess.run([sys.executable, "-c", IMPORTS], env=dict(variables), cwd=ROOT, check=True)
    after = psutil.Process().cpu_times()
    cpu = sum(after[2:4]) - sum(before[2:4])  # of children
    return Start(perf_counter() - begin, cpu)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def main(
    rounds: options.Rounds = 3,
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = None,
    device: options.Device = "auto",
    registry: options.Trained = options.DEMO_REGISTRY,
    output: options.Output = RESULTS,
) -> None:
    """Wall and CPU seconds until `python -m server` is ready, with empty caches and with full ones.

    CPU seconds are compared with the targets: at most 25 besides the imports the first time, 5 later. The
    first round's log stands in the results.

    A quick look: python -m benchmarks.first_start --rounds 1
    """
    facts = machine()
    flags = options.flags(base, quantization, device)
    starts: dict[str, list[Start]] = {FIRST: [], LATER: [], BARE: []}
    progress = Progress(3 * rounds)
    with served(identify_base(base), random=0, trained=registry) as stacks:
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as cache:
                variables = environment(Path(cache))
                for name, done in starts.items():
                    done.append(
                        import_alone(variables)
                        if name == BARE
                        else start_server(stacks.path, flags, variables)
                    )
                    progress.done(f"{name}: {done[-1].wall_s:.1f} s, {done[-1].cpu_s:.1f} CPU s")
    document, text = report(starts)
    chosen = options.asked(base, quantization, device, rounds=rounds)
    write_results(NAME, {"machine": facts, "settings": chosen, **document}, text, output)


def report(starts: Mapping[str, list[Start]]) -> tuple[dict[str, Any], str]:
    """For the JSON document, and as text."""
    imports = Spread.of(start.cpu_s for start in starts[BARE])
    documents: dict[str, Any] = {}
    rows: list[list[object]] = []
    for name, done in starts.items():
        wall = Spread.of(start.wall_s for start in done)
        cpu = Spread.of(start.cpu_s for start in done)
        documents[name] = {"wall_s": wall, "cpu_s": cpu}
        row: list[object] = [name, wall, cpu, "", ""]
        if name in MOST_CPU_SECONDS:
            most = MOST_CPU_SECONDS[name]
            documents[name] |= {"target_cpu_s": most + imports.median, "log": list(done[0].log)}
            row[3:] = [f"<= {most:g} + imports", met(cpu.median <= most + imports.median)]
        rows.append(row)
    logs = "\n\n".join(
        f"Log of the {name}:\n\n```\n" + "\n".join(starts[name][0].log) + "\n```" for name in MOST_CPU_SECONDS
    )
    table = markdown_table(["", "wall s", "CPU s", "target, CPU s", ""], rows)
    return {"starts": documents}, f"Median (min..max) of {len(starts[FIRST])} rounds.\n\n{table}\n\n{logs}"


app = options.application(main)

if __name__ == "__main__":
    app()
