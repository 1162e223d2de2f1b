"""A run's directory in use: one process at a time, and always the same run."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from brainstacks.durable import atomic_write, make_directory, storage_full, sweep
from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import is_digest, sha256_file
from training.data.domains import DomainData
from training.recipe.settings import DataRecipe
from training.runs.paths import IDENTITY, LOCK, RunPaths
from training.runs.provenance import data_identity
from training.runs.stored import read_as

TOOLS = "tools"
"""The part of an identity that may change between starts: versions of what computes."""

SPLITTING = ("selection", "router", "validation", "contamination", "seed")
"""The settings of the data that decide which record is in which split."""

_ABSENT = object()

_log = logging.getLogger(__name__)


class RunDirectory(RunPaths):
    """Holds the lock of one run while the `with` lasts; whoever writes there, but for the report, holds it.

    Args:
        path: made when it is not there.

    Raises, on entry:
        ConfigError: another process holds it, or it is a file.
        StorageFull: no room for the first files.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = -1

    def __enter__(self) -> Self:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path.name!r} is no directory, so no run; give another --run")
        with storage_full("the run's directory"):
            make_directory(self.path)
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._take_lock()
                for place in (self.path, *filter(Path.is_dir, self.path.iterdir())):
                    sweep(place)
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

    def check_identity(self, identity: Mapping[str, Any]) -> None:
        """Make this the run of `identity`, or see that it is; needs the lock.

        Args:
            identity: what the results depend on, as JSON values: recipe, base, quantisation, digests of the
                data. A start with another one is refused; a difference under `tools` only warns.

        Raises:
            ConfigError: it is another run's, or it holds files and no run; its run.json is damaged.
            StorageFull: no room for run.json.
        """
        text = json.dumps(identity, indent=2, sort_keys=True) + "\n"
        new = json.loads(text)
        old = read_as(self.identity, dict)
        if old is None:
            self._begin(text)
            return
        if old.get("processes") == 1:  # of before this decided nothing: a step had as many rows more
            del old["processes"]
        tools = differences(old.pop(TOOLS, {}), new.pop(TOOLS, {}))
        if tools:
            _log.warning("the run %r was started with other tools: %s", self.path.name, "; ".join(tools))
        changed = differences(old, new)
        if changed:
            raise ConfigError(
                f"the run {self.path.name!r} was started with other settings, and its results would be of "
                "neither; give another --run, remove it, or undo:\n  " + "\n  ".join(changed)
            )

    def whole_stack(self, domain: str) -> bool:
        """Whether the stack of `domain` is there, as it was written. One that is not is removed, with a
        warning."""
        path, digest = self.stack(domain), self.stack_digest(domain)
        if not path.is_file():
            return False
        whole = digest.is_file() and digest.read_text(encoding="utf-8").strip() == sha256_file(path)
        if not whole:
            _log.warning("%s of %s does not verify; it is made again from its rounds", path.name, domain)
            path.unlink()
        return whole

    def compute(self) -> str | None:
        """The name of the dtype that the run computes in; None where it was not started."""
        return read_as(self.identity, lambda document: document.get("compute"))

    def check_splits(self, settings: DataRecipe, records: Mapping[str, DomainData]) -> None:
        """See that the run, if any, made the same splits of the same data: else what its stacks trained on
        would be held out from the router, or validate them. Domains may have been added since.

        Raises:
            ConfigError: it did not; run.json is damaged.
        """
        begun = read_as(self.identity, lambda document: (document["recipe"]["data"], document["data"]))
        if begun is None:
            return
        data = {name: facts for name, facts in data_identity(records).items() if name in begun[1]}
        new = {"data": data, "recipe": {"data": {name: getattr(settings, name) for name in SPLITTING}}}
        old = {
            "data": {name: begun[1][name] for name in data},
            "recipe": {"data": {name: begun[0].get(name) for name in SPLITTING}},
        }
        changed = differences(old, new)
        if changed:
            raise ConfigError(
                f"the run {self.path.name!r} trained on other splits, so that its stacks may know what is "
                "held out here; give another --run, or undo:\n  " + "\n  ".join(changed)
            )

    def _begin(self, identity: str) -> None:
        strange = sorted(path.name for path in self.path.iterdir() if path.name != LOCK)
        if strange:
            raise ConfigError(
                f"{self.path.name!r} holds {strange[0]} and no {IDENTITY}, so no run can go on there; "
                "give another --run, or remove it"
            )
        atomic_write(self.identity, identity)


def working_on(run: RunPaths) -> bool:
    """Whether a process holds the lock of `run`, as whoever writes there does."""
    try:
        lock = os.open(run.path / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


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
