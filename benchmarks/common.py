"""What every benchmark shares: interleaved runs, their summary, the machine, and the results' files."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"

OnToken = Callable[[int], None]
Contestant = Callable[[int, OnToken], None]
"""Generates one text of that many tokens, and calls back with each token's id as soon as it is chosen."""

WARM_UP_TOKENS = 2


@dataclass(frozen=True)
class Run:
    """One timed generation.

    Attributes:
        tokens: ids, in order.
        first_token_s: seconds from the start to the first token (the prefill).
        decode_s: seconds from the first token to the last.
    """

    tokens: tuple[int, ...]
    first_token_s: float
    decode_s: float

    @property
    def rate(self) -> float:
        """Decoded tokens per second, the first token and its prefill left out."""
        return (len(self.tokens) - 1) / self.decode_s


def timed(contestant: Contestant, tokens: int, clock: Callable[[], float] = perf_counter) -> Run:
    """Run `contestant` once, for at least two tokens.

    Raises:
        RuntimeError: it gave another number of tokens, so that its figure would not be comparable.
    """
    ids: list[int] = []
    times: list[float] = []

    def on_token(token: int) -> None:
        times.append(clock())
        ids.append(token)

    start = clock()
    contestant(tokens, on_token)
    if len(ids) != tokens:
        raise RuntimeError(f"{len(ids)} tokens were generated and {tokens} were asked for")
    return Run(tuple(ids), times[0] - start, times[-1] - times[0])


def interleave(
    contestants: Mapping[str, Contestant],
    rounds: int,
    tokens: int,
    *,
    clock: Callable[[], float] = perf_counter,
    report: Callable[[str], None] = print,
) -> dict[str, list[Run]]:
    """Run A B C, A B C, ...: what disturbs the machine for a while disturbs all of them.

    Before the first round each runs once, briefly and uncounted, to load and pack what later runs find ready.
    """
    for contestant in contestants.values():
        timed(contestant, WARM_UP_TOKENS, clock)
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, contestant in contestants.items():
            runs[name].append(timed(contestant, tokens, clock))
        rates = ", ".join(f"{name} {done[-1].rate:.1f}" for name, done in runs.items())
        report(f"  round {number + 1}/{rounds}, tok/s: {rates}")
    return runs


@dataclass(frozen=True)
class Spread:
    """A quantity over the rounds."""

    median: float
    min: float
    max: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        rounded = tuple(float(f"{value:.4g}") for value in values)
        return cls(float(f"{statistics.median(values):.4g}"), min(rounded), max(rounded), rounded)

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.min:.4g}..{self.max:.4g})"


def rates(runs: Sequence[Run]) -> Spread:
    """Decoded tokens per second."""
    return Spread.of([run.rate for run in runs])


def first_tokens(runs: Sequence[Run]) -> Spread:
    """Milliseconds to the first token."""
    return Spread.of([1000 * run.first_token_s for run in runs])


def ratios(ours: Sequence[Run], theirs: Sequence[Run]) -> Spread:
    """How many times faster `ours` decode than `theirs`, round by round."""
    return Spread.of([a.rate / b.rate for a, b in zip(ours, theirs, strict=True)])


def common_prefix(ours: Run, theirs: Run) -> int:
    """Tokens that two runs agree on before they first differ."""
    pairs = zip(ours.tokens, theirs.tokens, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours.tokens), len(theirs.tokens)))


def machine() -> dict[str, Any]:
    """What the figures were measured on; nothing in it identifies the host or its users."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "kind": _slug(gpu) if gpu else f"cpu-{os.cpu_count()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_1min": round(os.getloadavg()[0], 2),
        "gpu": gpu,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {
            "python": platform.python_version(),
            **{p: version(p) for p in ("brainstacks", "torch", "transformers", "bitsandbytes")},
        },
    }


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with aligned columns, readable as text and as Markdown."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def write_results(name: str, document: Mapping[str, Any], table: str, directory: Path = RESULTS) -> Path:
    """Write `<name>-<host kind>.json` and, beside it, the table as `.md`; returns the JSON file's path.

    Args:
        document: JSON values and `Spread`s; `machine()` is under the key `machine`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}-{document['machine']['kind']}.json"
    path.write_text(json.dumps(document, indent=1, default=_spread) + "\n")
    facts = document["machine"]
    where = facts["gpu"] or f"{facts['cpu']}, {facts['cores']} cores"
    path.with_suffix(".md").write_text(f"# {name}\n\n{where}, {facts['date']}\n\n{table}\n")
    return path


def _spread(value: object) -> dict[str, Any]:
    if not isinstance(value, Spread):
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return asdict(value)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()
