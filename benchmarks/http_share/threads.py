"""What the system says of threads: how long each was on a core, and how long it waited for one."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from brainstacks.errors import ConfigError

ENGINE, LOOP, ENCODERS, HELPERS, OTHERS = "engine", "loop", "encoders", "helpers", "others"
_NAMES = {"engine": ENGINE, "MainThread": LOOP, "AnyIO worker thread": ENCODERS, "step helper": HELPERS}


@dataclass(frozen=True)
class ThreadTime:
    """Seconds. The rest of the time a thread slept; the engine's has nothing to sleep for within a step but
    the interpreter's lock.

    Attributes:
        computed: on a core.
        queued: ready, while others had the cores.
    """

    computed: float = 0.0
    queued: float = 0.0

    def __add__(self, other: ThreadTime) -> ThreadTime:
        return ThreadTime(self.computed + other.computed, self.queued + other.queued)

    def __sub__(self, other: ThreadTime) -> ThreadTime:
        return ThreadTime(self.computed - other.computed, self.queued - other.queued)


Times = Mapping[int, ThreadTime]
"""Thread's id -> since it began."""


def thread_times(pid: int) -> Times:
    """Of all threads of a process.

    Raises:
        ConfigError: the system does not tell.
    """
    found: dict[int, ThreadTime] = {}
    tasks = Path(f"/proc/{pid}/task")
    if not (tasks / str(pid) / "schedstat").exists():
        raise ConfigError(
            "this system does not tell how long threads wait for a core (/proc/PID/task/TID/schedstat); "
            "measure on Linux, with CONFIG_SCHED_INFO in its kernel"
        )
    for task in tasks.iterdir():
        try:
            computed, queued, _ = (task / "schedstat").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that has just ended
        found[int(task.name)] = ThreadTime(int(computed) / 1e9, int(queued) / 1e9)
    return found


def kind_of(name: str) -> str:
    """Of a thread of the server, by its name, which Python may have given a number."""
    return next((kind for known, kind in _NAMES.items() if name.startswith(known)), OTHERS)


def kinds() -> dict[int, str]:
    """Thread's id -> its kind, of those of this process that Python knows."""
    return {thread.native_id or 0: kind_of(thread.name) for thread in threading.enumerate()}


def spent(before: Times, after: Times, kinds: Mapping[int, str]) -> dict[str, ThreadTime]:
    """Kind -> what its threads took between two looks, those that began meanwhile included."""
    total = dict.fromkeys((ENGINE, LOOP, ENCODERS, HELPERS, OTHERS), ThreadTime())
    for thread, time in after.items():
        total[kinds.get(thread, OTHERS)] += time - before.get(thread, ThreadTime())
    return total


def own() -> Times:
    """Of this process."""
    return thread_times(os.getpid())
