"""Checkpoints: directories that exist whole or not at all, and that nothing unverified is read from.

    <parent>/<name>/tensors.safetensors   what is large
    <parent>/<name>/state.json            everything else; floats come back bit for bit, NaN too
    <parent>/<name>/manifest.json         format, and bytes and sha256 of the two
    <parent>/.<name>.tmp-<32 hex>         being written, or being removed
    <parent>/.<name>.old                  moved aside while another checkpoint of its name takes its place

Everything is fsynced before the rename that makes it visible, and the parent after it. After a kill or a
power cut at any point, `load` and `latest` find every checkpoint whose `save` returned, and of the one being
written all or nothing; where it replaces another of its name, the old or the new. (Between two renames
neither has the name: the old is then read from where it was moved to, and the next `save` moves it back.)

A parent has one writer at a time, and nobody reads while it writes: the run's lock sees to that.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from brainstacks import durable
from brainstacks.durable import fsync_directory, make_directory, partial, storage_full, write_file

FORMAT = 1
PREFIX = "step-"
"""Of the names of a run's checkpoints; the step follows, in decimals."""
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"

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
    temporary = partial(directory)
    try:
        with storage_full(f"checkpoint {directory.name}"):
            make_directory(temporary)
            for name, content in {**contents, MANIFEST: _json(_manifest(contents))}.items():
                write_file(temporary / name, [content])
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


def latest(parent: Path) -> Checkpoint | None:
    """Of the checkpoints `step-<number>` in `parent`, the one of the highest number that verifies."""
    found = (load(directory) for directory in _numbered(parent))
    return next((checkpoint for checkpoint in found if checkpoint is not None), None)


def prune(parent: Path, keep: int) -> None:
    """Remove all but the `keep` newest verified checkpoints `step-<number>`; all of them if it is 0.

    An unverified one stays while no verified one is newer.
    """
    sweep(parent)
    verified = 0
    for directory in _numbered(parent):
        kept = verified < keep and _verified(directory) is not None
        verified += kept
        if not kept and verified >= min(keep, 1):
            os.rename(directory, partial(directory))
    sweep(parent)


def sweep(parent: Path) -> None:
    """Settle what a writer that is gone left in `parent`: the old gets its name back, the partial goes."""
    for aside in parent.glob(".*.old"):
        if _home(aside).exists():
            shutil.rmtree(aside)
        else:
            os.rename(aside, _home(aside))
    durable.sweep(parent)


def _aside(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.old")


def _home(aside: Path) -> Path:
    return aside.with_name(aside.name.removeprefix(".").removesuffix(".old"))


def _numbered(parent: Path) -> list[Path]:
    """The directories `step-<number>` in `parent`, highest number first."""
    paths = {*parent.glob(f"{PREFIX}*"), *map(_home, parent.glob(f".{PREFIX}*.old"))}
    numbers = {path: path.name.removeprefix(PREFIX) for path in paths}
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
