"""Checkpoints: directories that exist whole or not at all, and that nothing unverified is read from.

    <parent>/<name>/tensors.safetensors   what is large
    <parent>/<name>/state.json            everything else; floats come back bit for bit, NaN too
    <parent>/<name>/manifest.json         format, and bytes and sha256 of the two
    <parent>/.<name>.tmp-<pid>            being written, or being removed
    <parent>/.<name>.old                  moved aside while another checkpoint of its name takes its place

Everything is fsynced before the rename that makes it visible, and the parent after it. After a kill or a
power cut at any point, `load` and `latest` find every checkpoint whose `save` returned, and of the one being
written all or nothing; where it replaces another of its name, the old or the new. (Between two renames
neither has the name: the old is then read from where it was moved to, and the next `save` moves it back.)

A parent has one writer at a time, and nobody reads while it writes: the run's lock sees to that.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from brainstacks.errors import StorageFull

FORMAT = 1
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: `tensors` by name, on the CPU, and `state` as JSON holds it."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(directory: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Make `directory` a checkpoint of `tensors` (any shape, strides, device) and `state` (JSON, str keys).

    Holds two copies of the tensors in memory meanwhile.

    Raises:
        StorageFull: no room; no part of it is left, and the others are as they were.
    """
    contents = {
        TENSORS: bytes_of({name: _copy(tensor) for name, tensor in sorted(tensors.items())}),
        STATE: _json(state),
    }
    sweep(directory.parent)
    if directory.exists() and _verified(directory) == contents:
        return
    temporary = _partial(directory)
    try:
        with storage_full(f"checkpoint {directory.name}"):
            make_directory(temporary)
            for name, content in {**contents, MANIFEST: _json(_manifest(contents))}.items():
                write_durably(temporary / name, content)
            fsync_directory(temporary)
            if directory.exists():
                os.rename(directory, _aside(directory))
            os.rename(temporary, directory)
            fsync_directory(directory.parent)
    finally:
        sweep(directory.parent)


def load(directory: Path) -> Checkpoint | None:
    """The checkpoint in `directory`; None where there is none or, with a warning, none that verifies."""
    places = [place for place in (directory, _aside(directory)) if place.exists()]
    contents = _verified(places[0]) if places else None
    if contents is None:
        return None
    return Checkpoint(tensors_of(contents[TENSORS]), json.loads(contents[STATE]))


def latest(parent: Path, prefix: str = "step-") -> Checkpoint | None:
    """Of the checkpoints `<prefix><number>` in `parent`, the one of the highest number that verifies."""
    found = (load(directory) for directory in _numbered(parent, prefix))
    return next((checkpoint for checkpoint in found if checkpoint is not None), None)


def prune(parent: Path, keep: int, prefix: str = "step-") -> None:
    """Remove all but the `keep` newest verified checkpoints `<prefix><number>`; all of them if it is 0.

    An unverified one stays while no verified one is newer.
    """
    sweep(parent)
    verified = 0
    for directory in _numbered(parent, prefix):
        kept = verified < keep and _verified(directory) is not None
        verified += kept
        if not kept and verified >= min(keep, 1):
            os.rename(directory, _partial(directory))
    sweep(parent)


def sweep(parent: Path) -> None:
    """Settle what a writer that is gone left in `parent`: the old gets its name back, the partial goes."""
    for aside in parent.glob(".*.old"):
        if _home(aside).exists():
            shutil.rmtree(aside)
        else:
            os.rename(aside, _home(aside))
    for partial in parent.glob(".*.tmp-*"):
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink()


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


def _aside(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.old")


def _home(aside: Path) -> Path:
    return aside.with_name(aside.name.removeprefix(".").removesuffix(".old"))


def _numbered(parent: Path, prefix: str) -> list[Path]:
    """The directories `<prefix><number>` in `parent`, highest number first."""
    paths = {*parent.glob(f"{prefix}*"), *map(_home, parent.glob(f".{prefix}*.old"))}
    numbers = {path: path.name.removeprefix(prefix) for path in paths}
    return sorted((p for p in paths if numbers[p].isdecimal()), key=lambda p: -int(numbers[p]))


def _verified(directory: Path) -> dict[str, bytes] | None:
    """Contents of the two files; None, with a warning, unless they are what the manifest says."""
    try:
        contents = {name: (directory / name).read_bytes() for name in (TENSORS, STATE)}
        manifest = json.loads((directory / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        _log.warning("%s is ignored: %s", directory.name, error)
        return None
    actual = _manifest(contents)
    if manifest != actual:
        _log.warning("%s is ignored: its manifest says %s, it holds %s", directory.name, manifest, actual)
        return None
    return contents


def _manifest(contents: Mapping[str, bytes]) -> dict[str, Any]:
    files = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    return {"format": FORMAT, "files": files}


def _json(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True) + "\n").encode()


def _copy(tensor: Tensor) -> Tensor:
    """Row-major, on the CPU, in storage of its own: the container takes nothing else."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


# --- durable files ---------------------------------------------------------------------------------


def make_directory(path: Path) -> None:
    """Create `path` and what is missing above it, and fsync where they were entered."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir()
        fsync_directory(path.parent)


def write_durably(path: Path, content: bytes) -> None:
    """Write the file `path` and fsync it. Raises OSError, and may then leave a part of it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storage_full(what: str) -> Iterator[None]:
    """Turn an OSError for want of room (disk, quota, file size) into StorageFull, naming `what`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise StorageFull(
            f"no room to write {what} ({error.strerror}); what was saved before is intact: "
            "free some space or raise the quota, and give the same command again"
        ) from error


# --- state dicts -----------------------------------------------------------------------------------


def flatten(value: Any, prefix: str = "") -> tuple[dict[str, Tensor], Any]:
    """Take a state dict apart into tensors `<prefix><n>`, in order of appearance, and a JSON skeleton.

    Args:
        value: dicts with int or str keys, lists, tuples, tensors, None, bool, int, float and str, nested.

    Raises:
        TypeError: anything else is in it.
    """
    tensors: dict[str, Tensor] = {}

    def skeleton(value: Any) -> Any:
        kind = type(value)
        if isinstance(value, Tensor):
            name = f"{prefix}{len(tensors)}"
            tensors[name] = value
            return {"tensor": name}
        if kind in (dict, OrderedDict) and all(type(key) in (int, str) for key in value):
            return {"dict": [[key, skeleton(item)] for key, item in value.items()]}
        if kind is tuple:
            return {"tuple": [skeleton(item) for item in value]}
        if kind is list:
            return [skeleton(item) for item in value]
        if value is None or kind in (bool, int, float, str):
            return value
        raise TypeError(
            f"a state dict holds {value!r}, a {kind.__name__}, for which a checkpoint has no form"
        )

    return tensors, skeleton(value)


def unflatten(tensors: Mapping[str, Tensor], skeleton: Any) -> Any:
    """What `flatten` took apart; tensors without the strides, device and sharing that they had."""
    if isinstance(skeleton, list):
        return [unflatten(tensors, item) for item in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    ((kind, content),) = skeleton.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(unflatten(tensors, item) for item in content)
    return {key: unflatten(tensors, item) for key, item in content}
