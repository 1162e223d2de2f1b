"""Sections in their order, each in a process of its own: what one does to the GPU is over with it."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import sleep, time
from typing import Any, cast

from benchmarks.gpu_sections.findings import Findings, LeftOut
from benchmarks.gpu_sections.setting import Setting

GRACE = 10.0
"""Seconds that a section may take to end, once its time is over and it was noted where it is."""
LOOK = 0.2
"""Seconds between two looks at processes that run."""

Document = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """Attributes:
    title: for people.
    run: finds out what it is about.
    """

    name: str
    title: str
    run: Callable[[Setting, Findings], None]


@dataclass(frozen=True)
class Group:
    """Sections that run side by side, as nothing that they measure depends on who else is there.

    Attributes:
        weight: its share of the time, against those of the groups that are still to come.
    """

    weight: float
    sections: tuple[Section, ...]


def run(
    groups: Sequence[Group],
    setting: Setting,
    minutes: float,
    report: Callable[[Mapping[str, Document]], None],
) -> dict[str, Document]:
    """Run all; what a group leaves of its time, those after it have.

    Args:
        report: called with what there is, section -> document, whenever that changed.

    Returns:
        section -> its document.
    """
    found: dict[str, Document] = {}
    end = time() + 60 * minutes - GRACE
    for number, group in enumerate(groups):
        share = group.weight / sum(later.weight for later in groups[number:])
        until = time() + share * max(0.0, end - time())
        for now in _side_by_side(group.sections, setting, until):
            if any(found.get(name) != document for name, document in now.items()):
                found |= now
                report(found)
    return found


def _side_by_side(
    sections: Sequence[Section], setting: Setting, until: float
) -> Iterator[dict[str, Document]]:
    """What they have found so far, until all have ended."""
    paths = {section.name: setting.scratch / f"{section.name}.json" for section in sections}
    with _processes([(section, setting, paths[section.name], until) for section in sections]) as processes:
        while any(process.is_alive() for process in processes.values()):
            sleep(LOOK)
            if time() > until + GRACE:
                for process in processes.values():
                    _end(process)
            yield {name: _read(path) for name, path in paths.items() if path.exists()}
        ended = {}
        for name, process in processes.items():
            process.join()
            ended[name] = _closed(paths[name], process)
        yield ended


@contextmanager
def _processes(work: Sequence[tuple[Section, Setting, Path, float]]) -> Iterator[dict[str, BaseProcess]]:
    context = get_context("spawn")  # CUDA outlives no fork
    started: dict[str, BaseProcess] = {}
    try:
        for arguments in work:
            process: BaseProcess = context.Process(
                target=work_section, args=arguments, name=arguments[0].name
            )
            process.start()
            started[arguments[0].name] = process
        yield started
    finally:
        for process in started.values():
            _end(process)


def _end(process: BaseProcess) -> None:
    """And what it started."""
    process.kill()  # it may not have got so far as to lead a group
    process.join()
    with suppress(ProcessLookupError):
        os.killpg(cast(int, process.pid), signal.SIGKILL)


def work_section(section: Section, setting: Setting, path: Path, until: float) -> None:
    """One section, in this process, which took a while to start. `until`: as `time` gives it."""
    os.setpgid(0, 0)
    seconds = max(1.0, until - time())
    with path.with_suffix(".stuck").open("w") as stuck:
        faulthandler.enable(stuck)
        faulthandler.dump_traceback_later(seconds, file=stuck)
        measure(section, setting, Findings(path, section.name, seconds))
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()


def measure(section: Section, setting: Setting, found: Findings) -> None:
    """Whatever `section` does, its findings end with a state."""
    state = "done"
    try:
        section.run(setting, found)
    except LeftOut as error:
        state = f"left out from here on: {error}"
    except Exception:
        state = f"failed\n{traceback.format_exc()}"
    found.say(state)
    found.end(state)


def _closed(path: Path, process: BaseProcess) -> Document:
    """The document of a section whose process is over; one that ended without a word is told of."""
    document = (
        _read(path) if path.exists() else {"state": "running", "attempts": [], "figures": {}, "tables": []}
    )
    if document["state"] == "running":
        stuck = path.with_suffix(".stuck")
        where = stuck.read_text() if stuck.exists() else ""
        document["state"] = f"failed\nits process ended with {process.exitcode}; it was at\n{where}"
    return document


def _read(path: Path) -> Document:
    document: Document = json.loads(path.read_text())
    return document


def passed(document: Document) -> bool:
    """A section failed neither as a whole nor in a part."""
    return not document["state"].startswith("failed") and all(one["passed"] for one in document["attempts"])
