"""Directories that are made once and kept under the user's cache: converted and quantised bases.

    <cache>/bases/<digest of the key>/       one entry: files/, and entry.json with their sha256
    <cache>/bases/.<digest>.lock             held (flock) by the one process that makes it
    <cache>/bases/.<digest>.tmp-<32 hex>     being made, or left by a process that was killed

An entry is used with every byte that was written, or it is made anew: nothing of a damaged one is served.
Where the cache cannot be written, the entry is made in a temporary directory, for this process alone.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from brainstacks.durable import partial

_log = logging.getLogger(__name__)

_MANIFEST, _FILES = "entry.json", "files"

Build = Callable[[Path], Mapping[str, str]]
"""Fills an empty directory; returns facts that are kept with it."""


@dataclass(frozen=True)
class Entry:
    """Attributes:
    directory: whose files are as they were made. Not to be written to.
    facts: what `Build` returned.
    """

    directory: Path
    facts: Mapping[str, str]


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/brainstacks`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "brainstacks"


def cached(what: str, key: Mapping[str, str], build: Build) -> Entry:
    """The entry of `key`, made by `build` where there is none that is whole.

    Args:
        what: the entry, for the log.
        key: everything that decides its bytes.
    """
    target = cache_directory() / "bases" / hashlib.sha256(_json(key).encode()).hexdigest()[:32]
    found = _read(target, what)
    if found is not None:
        return found
    try:
        with _lock(target, what):
            return _read(target, what) or _make(target, what, key, build)
    except (OSError, SafetensorError) as error:  # the latter where safetensors cannot write
        _log.warning(
            "%s cannot be kept in %s (%s), and is made anew at every start; make that writable, or set "
            "XDG_CACHE_HOME to another directory",
            what,
            target.parent,
            error,
        )
    temporary = tempfile.mkdtemp(prefix="brainstacks-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return _make(Path(temporary) / target.name, what, key, build)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make(target: Path, what: str, key: Mapping[str, str], build: Build) -> Entry:
    _log.info("making %s", what)
    started = time.perf_counter()
    building = partial(target)
    content = building / _FILES
    content.mkdir(parents=True)
    try:
        facts = dict(build(content))
        # Not fsynced: a file that a power cut takes no longer matches, and the entry is made anew.
        files = {path.name: sha256_of(path) for path in content.iterdir()}
        manifest = {"key": dict(key), "facts": facts, "files": files}
        (building / _MANIFEST).write_text(_json(manifest), encoding="utf-8")
        if target.exists():  # damaged, or it would have been used
            damaged = partial(target)
            target.rename(damaged)
            shutil.rmtree(damaged)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    _log.info("made %s in %.1f s", what, time.perf_counter() - started)
    return Entry(target / _FILES, facts)


def _read(target: Path, what: str) -> Entry | None:
    """The entry, verified; None where there is none, or a damaged one."""
    if not target.is_dir():
        return None
    try:
        manifest = json.loads((target / _MANIFEST).read_text(encoding="utf-8"))
        files, facts = manifest["files"], manifest["facts"]
        if {path.name for path in (target / _FILES).iterdir()} != set(files):
            raise ValueError("files are missing or were added")
        for name, digest in files.items():
            if sha256_of(target / _FILES / name) != digest:
                raise ValueError(f"{name} has changed")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("%s is damaged in the cache (%s: %s), and is made anew", what, target, error)
        return None
    return Entry(target / _FILES, facts)


@contextmanager
def _lock(target: Path, what: str) -> Iterator[None]:
    """Held by one process; what others left of the same entry when they were killed is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(
        target.with_name(f".{target.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
    )
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("another process is making %s; waiting for it", what)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        for stray in target.parent.glob(f".{target.name}.tmp-*"):
            shutil.rmtree(stray)
        yield
    finally:
        os.close(descriptor)  # releases the lock


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, sort_keys=True, indent=1)
