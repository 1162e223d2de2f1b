"""A run's directory: one process at a time, and always the same run.

RUN/run.json                       the identity: what the results depend on
RUN/lock                           held (flock) by the running process; its pid is inside
RUN/metrics.jsonl, tensorboard/    the log
RUN/<domain>/checkpoints/step-<n>  the round in progress
RUN/<domain>/round-<n>             finished rounds
RUN/<domain>/stack.safetensors     the finished stack
RUN/{forgetting.json, outcomes.jsonl, router.safetensors, evaluation.json, report.html}
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import is_digest
from training.checkpoint import fsync_directory, make_directory, storage_full, sweep, write_durably

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"
LOCK, IDENTITY = "lock", "run.json"
TOOLS = "tools"
"""The part of an identity that may change between starts: versions of what computes."""

_ABSENT = object()

_log = logging.getLogger(__name__)


class RunDirectory:
    """Holds the directory of one run while the `with` lasts.

    Args:
        path: made when it is not there.
        identity: what the results depend on, as JSON values: recipe, base, quantisation, digests of the
            data. A start with another identity is refused; a difference under `tools` only warns.

    Raises, on entry:
        ConfigError: another process holds it, it is another run's, or it holds files and no run.
        StorageFull: no room for the first files.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._identity = identity
        self._lock = -1

    def __enter__(self) -> Self:
        with storage_full("the run's directory"):
            make_directory(self.path)
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._take_lock()
                sweep(self.path)
                self._check_identity()
            except BaseException:
                os.close(self._lock)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)  # releases the lock, as the end of the process does

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._lock, 32, 0).decode() or "unknown"
            raise ConfigError(
                f"the run {self.path.name!r} is being worked on by process {holder}; "
                "wait for it, stop it, or give another --run"
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def _check_identity(self) -> None:
        file = self.path / IDENTITY
        text = json.dumps(self._identity, indent=2, sort_keys=True) + "\n"
        if not file.exists():
            strange = sorted(path.name for path in self.path.iterdir() if path.name != LOCK)
            if strange:
                raise ConfigError(
                    f"{self.path.name!r} holds {strange[0]} and no {IDENTITY}, so no run can go on there; "
                    "give another --run, or remove it"
                )
            atomic_write(file, text)
        old, new = json.loads(file.read_text(encoding="utf-8")), json.loads(text)
        tools = differences(old.pop(TOOLS, {}), new.pop(TOOLS, {}))
        if tools:
            _log.warning("the run %r was started with other tools: %s", self.path.name, "; ".join(tools))
        changed = differences(old, new)
        if changed:
            raise ConfigError(
                f"the run {self.path.name!r} was started with other settings, and its results would be of "
                "neither; give another --run, remove it, or undo:\n  " + "\n  ".join(changed)
            )

    def domain(self, name: str) -> Path:
        """Raises ConfigError: `name` is that of a file or directory of the run itself."""
        if name in (LOCK, TENSORBOARD, IDENTITY):
            raise ConfigError(f"the run keeps something else under {name!r}; give the domain another name")
        return self.path / name

    def checkpoints(self, domain: str) -> Path:
        return self.domain(domain) / "checkpoints"

    def round(self, domain: str, number: int) -> Path:
        return self.domain(domain) / f"round-{number}"

    def stack(self, domain: str) -> Path:
        return self.domain(domain) / "stack.safetensors"

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def forgetting(self) -> Path:
        return self.path / "forgetting.json"

    @property
    def outcomes(self) -> Path:
        return self.path / "outcomes.jsonl"

    @property
    def router(self) -> Path:
        return self.path / "router.safetensors"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"


def differences(old: Any, new: Any) -> list[str]:
    """One line for every leaf of two JSON values that differs: `round.steps: 400 -> 200`."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    pairs = {path: (before.get(path, _ABSENT), after.get(path, _ABSENT)) for path in before | after}
    return [f"{path}: {_change(*pair)}" for path, pair in pairs.items() if pair[0] != pair[1]]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in a JSON value that holds nothing itself."""
    if not isinstance(value, dict | list) or (path and not value):
        yield path, value
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(item, f"{path}.{key}" if path else str(key))


def _change(old: Any, new: Any) -> str:
    if is_digest(old) and is_digest(new):
        return f"sha256 {old[:12]}.. -> {new[:12]}.."
    return " -> ".join("absent" if value is _ABSENT else json.dumps(value) for value in (old, new))


def atomic_write(path: Path, text: str) -> None:
    """Replace the file `path` by `text` (UTF-8), durably: it is the old or the new, never a part.

    Raises:
        StorageFull: no room; the old one is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with storage_full(path.name):
            write_durably(temporary, text.encode())
            os.replace(temporary, path)
            fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
