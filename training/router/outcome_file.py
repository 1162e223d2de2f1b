"""Measured outcomes on disk: a JSONL file that survives kills, and what of it still holds for other stacks.

The first line holds the settings of the measurement, each further one an example with the stacks that it was
measured with. A loss depends only on the stacks of its combination.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from brainstacks.durable import make_directory, storage_full
from brainstacks.errors import ConfigError
from training.data.encoding import Example
from training.router.stacked_base import Weights, domains_of, name_of
from training.runs.stored import read_lines

Losses = Mapping[str, float]
"""Combination, by its name -> nats per answer token."""


class OutcomeFile:
    """Opens `path`, or makes it.

    Args:
        settings: what its losses and weights depend on besides the stacks; in JSON types.
        digests: domain -> digest of the stacks in use.

    Raises:
        ConfigError: the file is of other settings, or a line of it is damaged.
        StorageFull: no room for the settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], digests: Mapping[str, str]) -> None:
        self._path = path
        self._digests = dict(digests)
        self._losses: dict[tuple[str, str], dict[str, float]] = {}
        self._best: dict[tuple[str, str], tuple[Weights, float]] = {}
        for line in _lines(path, settings):
            self._take(line)

    def _take(self, line: Mapping[str, Any]) -> None:
        """Keep what still holds; of two lines about one example the later counts."""
        key = (line["domain"], line["tokens"])
        same = {d for d, digest in line["stacks"].items() if self._digests.get(d) == digest}
        losses = self._losses.setdefault(key, {})
        for name, loss in line["losses"].items():
            on = set(domains_of(name))
            if on <= same:  # its name is in the order of the stacks in use
                losses[name_of(d for d in self._digests if d in on)] = loss
        if line["stacks"] == self._digests:
            self._best[key] = ({d: line["weights"][d] for d in self._digests}, line["loss"])

    def losses(self, domain: str, example: Example) -> Losses:
        """Those of the combinations whose stacks are all in use still."""
        return self._losses.get((domain, _digest(example)), {})

    def best(self, domain: str, example: Example) -> tuple[Weights, float] | None:
        """The weights that were found with exactly the stacks in use, and their loss."""
        return self._best.get((domain, _digest(example)))

    def append(self, outcomes: Iterable[tuple[str, Example, Losses, Weights, float]]) -> None:
        """Add (domain, example, losses, weights, loss of the weights), measured with the stacks in use.

        Raises:
            StorageFull: no room; what was measured before these is kept.
        """
        with storage_full(self._path.name), self._path.open("a", encoding="utf-8") as file:
            for domain, example, losses, weights, loss in outcomes:
                line = {
                    "domain": domain,
                    "id": example.id,
                    "tokens": _digest(example),
                    "stacks": self._digests,
                    "losses": dict(losses),
                    "weights": dict(weights),
                    "loss": loss,
                }
                file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def measured_in(path: Path) -> str | None:
    """The name of the dtype that the outcomes in `path` were measured in; None where there are none.

    Raises:
        ConfigError: a line is damaged.
    """
    lines = read_lines(path)
    return lines[0].get("compute") if lines else None


def _digest(example: Example) -> str:
    """sha256 of what was measured: an id may come to name another text."""
    return hashlib.sha256(json.dumps([example.prompt, example.response]).encode()).hexdigest()


def _lines(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines after the settings, which are written where there are none."""
    with storage_full(path.name):
        make_directory(path.parent)
        with path.open("a+b") as file:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)  # what a kill cut off would become part of the next line
            if not whole:
                file.write(json.dumps(settings).encode() + b"\n")
    measured, *outcomes = read_lines(path)
    differ = sorted(key for key in {*measured, *settings} if measured.get(key) != settings.get(key))
    if differ:
        raise ConfigError(
            f"{path.name} was measured with another value of {', '.join(differ)}; "
            "remove it to measure again, or take another run directory"
        )
    return outcomes
