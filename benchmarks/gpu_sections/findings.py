"""What a section has found so far: whole on disk after every finding, so that a killed one leaves it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.instruments.results import as_json, markdown_table
from benchmarks.instruments.timing import say
from brainstacks.device import reclaim
from brainstacks.durable import atomic_write

DONE = "done"


class LeftOut(Exception):
    """The section ends here, and has not failed: it says what was not begun, and why."""


class Mismatch(Exception):
    """What was computed is not what it ought to be."""


class Findings:
    """Args:
    path: of the JSON file.
    name: the section's.
    seconds: that it has.

    Attributes:
        document: `state`, `seconds` taken so far, `attempts`, `figures` and `tables`, of JSON values and
            `Spread`s.
    """

    def __init__(
        self, path: Path, name: str, seconds: float, clock: Callable[[], float] = perf_counter
    ) -> None:
        self._path, self._name, self._clock = path, name, clock
        self._begin = clock()
        self._end = self._begin + seconds
        self.document: dict[str, Any] = {
            "state": "running",
            "seconds": 0.0,
            "attempts": [],
            "figures": {},
            "tables": [],
        }
        self._write()

    @property
    def left(self) -> float:
        """Seconds that the section still has."""
        return self._end - self._clock()

    def say(self, text: str) -> None:
        say(f"[{self._name}, {max(0, self.left):.0f} s left] {text}")

    def figure(self, name: str, value: Any) -> None:
        self.document["figures"][name] = value
        self._write()

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table; one of the same title takes the place of the earlier one."""
        kept = [table for table in self.document["tables"] if table["title"] != title]
        self.document["tables"] = [*kept, {"title": title, "text": markdown_table(header, rows)}]
        self._write()

    @contextmanager
    def attempt(self, what: str) -> Iterator[list[str]]:
        """Within the block something is tried; what it raises is recorded, and the section goes on.

        Gives a list for what is to be told of it.

        Raises:
            LeftOut: there is no time left to begin it.
        """
        if self.left <= 0:
            raise LeftOut(f"{what}: its time is over")
        self.say(what)
        told: list[str] = []
        begun = self._clock()
        found: dict[str, Any] = {"what": what, "passed": True}
        try:
            yield told
        except LeftOut:
            raise
        except Exception as error:
            found |= {"passed": False, "error": f"{type(error).__name__}: {error}"}
            if not isinstance(error, Mismatch):
                found["traceback"] = traceback.format_exc()
            self.say(f"FAILED: {what}: {found['error']}")
            reclaim(error)
        self.document["attempts"].append(
            found | {"told": "; ".join(told), "seconds": round(self._clock() - begun, 1)}
        )
        self._write()

    def end(self, state: str = DONE) -> None:
        self.document["state"] = state
        self._write()

    def _write(self) -> None:
        self.document["seconds"] = round(self._clock() - self._begin, 1)
        atomic_write(self._path, as_json(self.document))
