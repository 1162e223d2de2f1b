"""Tensors go into a file and come out of it unchanged; an unsound file is never written."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from brainstacks.errors import InvalidArtifact, StorageFull
from brainstacks.stacks.artifact import (
    DataSource,
    Predecessor,
    stack_shapes,
)
from brainstacks.stacks.router_artifact import (
    router_shapes,
)
from brainstacks.stacks.tensors import load_router_tensors, load_stack, save_router, save_stack
from tests.stacks.files import (
    router_metadata,
    stack_metadata,
)

FULL = stack_metadata(
    null_space={"directions": 64, "samples": 400},
    predecessors=(Predecessor("code", "a" * 64),),
    data=(DataSource("set", "b" * 64, 12), DataSource("unknown")),
    hyperparameters={"lr": 1e-4, "schedule": ["cosine", None]},
    seed=7,
    losses=({"round": 0, "before": 2.0, "after": 1.5}, {"round": 1, "before": 1.5, "after": 1.25}),
    tool_versions={"torch": "2"},
    licence="MIT",
    description="Größe ✓",
)


STACKS = {"chat": "a" * 64, "code": "b" * 64}


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    tensors = {name: torch.ones(shape) for name, shape in stack_shapes(FULL)}
    first = save_stack(tmp_path / "1", FULL, tensors)
    second = save_stack(tmp_path / "2", FULL, dict(reversed(tensors.items())))
    assert first == second
    assert first.digest == hashlib.sha256((tmp_path / "1").read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_saved_tensors_are_loaded_unchanged(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in stack_shapes(FULL)}
    save_stack(tmp_path / "f", FULL, tensors)
    loaded = load_stack(tmp_path / "f").tensors
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_slices_of_one_parameter_can_be_saved(tmp_path: Path) -> None:
    shared = torch.arange(10_000, dtype=torch.float32)
    tensors = {name: shared[: shape[0] * shape[1]].view(shape) for name, shape in stack_shapes(FULL)}
    save_stack(tmp_path / "f", FULL, tensors)
    loaded = load_stack(tmp_path / "f").tensors
    assert torch.equal(loaded["rounds.0.layers.0.q_proj.A"].flatten(), shared[:16])


def test_an_unsound_stack_is_never_written(tmp_path: Path) -> None:
    tensors = {name: torch.ones(shape) for name, shape in stack_shapes(FULL)}
    tensors["rounds.0.layers.0.q_proj.A"][0, 0] = float("nan")
    with pytest.raises(InvalidArtifact, match="NaN"):
        save_stack(tmp_path / "f", FULL, tensors)
    assert list(tmp_path.iterdir()) == []


def full_stack(path: Path) -> None:
    save_stack(path, FULL, {name: torch.ones(shape) for name, shape in stack_shapes(FULL)})


def full_router(path: Path) -> None:
    metadata = router_metadata(STACKS)
    save_router(path, metadata, {name: torch.ones(shape) for name, shape in router_shapes(metadata.config)})


@pytest.mark.parametrize("save", [full_stack, full_router])
@pytest.mark.parametrize("function", ["open", "write", "fsync", "replace"])
def test_no_room_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Path], None], function: str
) -> None:
    (tmp_path / "f").write_text("old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, full)
        with pytest.raises(StorageFull, match=r"no room to write f \(injected\)"):
            save(tmp_path / "f")
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "old"


@pytest.mark.parametrize("save", [full_stack, full_router])
def test_a_file_is_on_disk_before_it_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Path], None]
) -> None:
    events: list[object] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        events.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def replaced(old: Path, new: Path) -> None:
        events.append("renamed")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    save(tmp_path / "f")
    assert events == [(tmp_path / "f").stat().st_ino, "renamed", tmp_path.stat().st_ino]


def test_router_tensors_are_loaded_unchanged(tmp_path: Path) -> None:
    metadata = router_metadata(STACKS)
    tensors = {name: torch.rand(shape) for name, shape in router_shapes(metadata.config)}
    save_router(tmp_path / "f", metadata, tensors)
    loaded = load_router_tensors(tmp_path / "f")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
