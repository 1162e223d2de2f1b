"""How far something is, on stderr: a bar on a terminal, elsewhere lines; nothing of what takes no time.

One thing at a time is shown. What is done as a part of it is silent: its own progress is being told.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from typing import TypeVar

QUIET = 3.0
"""Seconds that pass before a word is said."""
EVERY = 10.0
"""Seconds between lines at first; as much as a twentieth of what has passed, later."""
LINES = 20
"""About how many lines tell of what is told from its start."""
DAY = 24 * 3600

T = TypeVar("T")

_showing = threading.Lock()


class Progress:
    """Counts what is done.

    Args:
        total: how much there is to do.
        unit: of it, in the plural.
        done: how much of it was done before, by a run that this one resumes.
        clock: seconds, from anywhere.
    """

    def __init__(
        self, name: str, total: int, unit: str, done: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name, self._unit, self._before, self._note = name, unit, done, ""
        self.total, self.done = total, done
        self._clock, self._started = clock, clock()
        self.changed: Callable[[], None] = lambda: None

    @property
    def elapsed(self) -> float:
        return self._clock() - self._started

    def advance(self, note: str = "", count: int = 1) -> None:
        """`count` more are done; `note` is what is to be told of them."""
        self.done += count
        self._note = note and f"{note}, "
        self.changed()

    def text(self) -> str:
        """For people: what, how far, how long it will take."""
        head = f"{self._name} {self.done}/{self.total} {self._unit}" if self.total else self._name
        if self.done == self._before:
            return f"{head}: {self.elapsed:.0f} s so far" if self.elapsed >= 1 else head
        return f"{head}: {self._note}{left(self.elapsed, self.done - self._before, self.total - self.done)}"


def left(elapsed: float, done: int, more: int) -> str:
    """How long `more` will take, and when they are done, where `done` took `elapsed` seconds."""
    seconds = elapsed / done * more
    end = datetime.now().astimezone() + timedelta(seconds=seconds)
    return f"{duration(seconds)} left, ends {end:{'%H:%M' if seconds < DAY else '%a %d %b %H:%M'}}"


def duration(seconds: float) -> str:
    """For people: `12 s`, `3.5 min`, `1.9 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


@contextmanager
def shown(name: str, total: int, unit: str, done: int = 0, quiet: float = QUIET) -> Iterator[Progress]:
    """Show the progress of what the `with` does, unless it is part of something that is shown.

    Args:
        quiet: seconds before the first word; 0 also tells every twentieth of what is done.
    """
    progress = Progress(name, total, unit, done)
    with ExitStack() as resources:
        if _showing.acquire(blocking=False):
            resources.callback(_showing.release)
            resources.enter_context(_drawn(progress, quiet))
        yield progress


@contextmanager
def silent() -> Iterator[None]:
    """Show nothing meanwhile: another process does."""
    with _showing:
        yield


@contextmanager
def tracked(items: Sequence[T], name: str, unit: str) -> Iterator[Iterator[T]]:
    """`items`, with the progress of what the `with` does with them `shown`."""
    with shown(name, len(items), unit) as progress:

        def each() -> Iterator[T]:
            for item in items:
                yield item
                progress.advance()

        yield each()


@contextmanager
def working(name: str) -> Iterator[None]:
    """Show for how long the `with` has been at `name`, of which nobody knows how far it is."""
    with shown(name, 0, ""):
        yield


@contextmanager
def _drawn(progress: Progress, quiet: float) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Told(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(progress.text())

    console = Console(stderr=True)
    if not console.is_terminal:
        with _told(progress, quiet):
            yield
        return
    bar = Bar(Told(), BarColumn(), console=console, transient=True)
    task = bar.add_task("", total=progress.total or None, completed=progress.done)
    progress.changed = lambda: bar.update(task, completed=progress.done)
    ended = threading.Event()

    def begin() -> None:
        if not ended.wait(quiet):
            bar.start()

    beginner = threading.Thread(target=begin, daemon=True)
    beginner.start()
    try:
        yield
    finally:
        ended.set()
        beginner.join()
        bar.stop()


@contextmanager
def _told(progress: Progress, quiet: float) -> Iterator[None]:
    """Lines: the first after `quiet` seconds, and the longer it takes, the rarer."""
    ended, every = threading.Event(), max(1, progress.total // LINES)

    def say() -> None:
        print(progress.text(), file=sys.stderr, flush=True)

    def tell() -> None:
        pause = quiet or EVERY
        while not ended.wait(pause):
            say()
            pause = max(EVERY, progress.elapsed / LINES)

    def count() -> None:
        if progress.done % every == 0 or progress.done == progress.total:
            say()

    if quiet == 0:
        progress.changed = count
    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
