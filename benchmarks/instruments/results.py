"""What every benchmark writes: figures over the rounds, the machine that they are of, a file and a table."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.instruments.checkout import ROOT
from benchmarks.instruments.timing import Report, say
from brainstacks.cpu import cpu
from brainstacks.device import gpu
from brainstacks.durable import atomic_write

RESULTS = ROOT / "benchmarks" / "results"

PACKAGES = (
    "brainstacks", "torch", "transformers", "bitsandbytes", "numba", "triton", "peft", "vllm", "xllamacpp"
)  # fmt: skip
"""Whose versions bear on the figures; one that is not installed is left out."""


EXTENSIONS = {
    "amx-int8": "amx",
    "avx512bf16": "avx512bf16",
    "avx512vnni": "avx512vnni",
    "avx512f": "avx512",
    "avxvnni": "avxvnni",
    "avx2": "avx2",
    "i8mm": "i8mm",
    "dotprod": "dotprod",
    "neon": "neon",
}
"""A feature of `brainstacks.cpu` -> what a file of results calls it; the best one first."""


@dataclass(frozen=True)
class Spread:
    """A quantity over the rounds."""

    median: float
    min: float
    max: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        rounded = tuple(float(f"{value:.4g}") for value in values)
        return cls(float(f"{statistics.median(rounded):.4g}"), min(rounded), max(rounded), rounded)

    @classmethod
    def ratio(cls, ours: Iterable[float], theirs: Iterable[float]) -> Spread:
        """`ours / theirs`, taken round by round."""
        return cls.of([a / b for a, b in zip(ours, theirs, strict=True)])

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.min:.4g}..{self.max:.4g})"


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that at least `percent` % of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def met(holds: bool) -> str:
    """Of a target."""
    return "met" if holds else "not met"


def rounds_note(rounds: int) -> str:
    """What stands above tables of `Spread`s."""
    return f"Median (min..max) of {rounds} rounds; ratios are taken round by round.\n\n"


def vector_extension(features: Collection[str]) -> str:
    """The one of `EXTENSIONS` that says most about the speed of a CPU with these; `generic` without any."""
    return next((name for feature, name in EXTENSIONS.items() if feature in features), "generic")


def machine() -> dict[str, Any]:
    """What the figures were measured on; nothing in it identifies the host or its users.

    `kind` is the GPU's name, or `cpu-<cores>-<best vector extension>`.
    """
    found = gpu()
    return {
        "kind": _slug(found.name) if found else f"cpu-{os.cpu_count()}-{vector_extension(cpu().features)}",
        "cpu": cpu().model,
        "cpu_features": list(cpu().features),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_1min": round(os.getloadavg()[0], 2),
        "gpu": None if found is None else str(found),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version(), **dict(_versions())},
    }


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with aligned columns, readable as text and as Markdown."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def write_results(
    name: str, document: Mapping[str, Any], text: str, directory: Path = RESULTS, *, report: Report = say
) -> Path:
    """Write `<name>-<host kind>.json` and, beside it, the tables as `.md`, and say so.

    Args:
        document: JSON values and `Spread`s; `machine()` is under the key `machine`.
        text: the tables.

    Returns:
        the JSON file's path.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}-{document['machine']['kind']}.json"
    document = {"benchmark": name, **document}
    atomic_write(path, as_json(document))
    facts = document["machine"]
    where = facts["gpu"] or f"{facts['cpu']} ({' '.join(facts['cpu_features'])}), {facts['cores']} cores"
    versions = ", ".join(f"{package} {number}" for package, number in facts["versions"].items())
    computed_by = f"computed by {facts['backend']}\n" if "backend" in facts else ""
    atomic_write(
        path.with_suffix(".md"),
        f"# {name}\n\n{where}, {facts['date']}\n{computed_by}{versions}\n\n{text}\n",
    )
    report(f"\n{text}\n\nwritten: {path.name}")
    return path


def as_json(document: Mapping[str, Any]) -> str:
    """Of JSON values and `Spread`s."""
    return json.dumps(document, indent=1, default=_spread) + "\n"


def _spread(value: object) -> dict[str, Any]:
    if not isinstance(value, Spread):
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return asdict(value)


def _versions() -> Iterable[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
