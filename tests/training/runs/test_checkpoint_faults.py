"""A checkpoint after a kill, a power cut or a full disk: the old or the new, never a part, and no trace."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brainstacks.errors import StorageFull
from tests.training.runs.checkpoints import names, put, value_of
from training.runs.checkpoint import latest, sweep

KILLED_SAVES = """
import os, signal, sys
from pathlib import Path
import torch
from training.runs import checkpoint

NAMES = ("open", "write", "fsync", "close", "mkdir", "rename", "unlink", "rmdir")
real = {name: getattr(os, name) for name in NAMES}
real["fsync"] = lambda descriptor: None  # a kill loses nothing that was written: only a power cut does

def saves(root):
    done = real["open"](root / "done", os.O_WRONLY | os.O_CREAT)
    for value, step in enumerate((1, 2, 2)):
        checkpoint.save(root / "run" / f"step-{step}", {"x": torch.full((64,), value)}, {"value": value})
        real["write"](done, b".")
        checkpoint.prune(root / "run", keep=1)

def arm(deadly):
    calls = 0
    def mortal(name):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == deadly:
                if name == "write":
                    real["write"](args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real[name](*args, **kwargs)
        return call
    for name in NAMES:
        setattr(os, name, mortal(name))

for deadly in range(1, 1000):
    root = Path(sys.argv[1]) / str(deadly)
    root.mkdir()
    child = os.fork()
    if child == 0:
        try:
            arm(deadly)
            saves(root)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    if not os.WIFSIGNALED(status):
        sys.exit("a save failed")
"""


@pytest.mark.slow
def test_a_kill_at_any_call_leaves_the_last_checkpoint_or_the_next_and_the_next_save_cleans_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", KILLED_SAVES, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=Path(__file__).parents[3], env=environment, check=True, timeout=120)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    new, moved = Counter[bool](), 0
    roots = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    for root in roots:
        done, parent = (root / "done").stat().st_size, root / "run"
        moved += (parent / ".step-2.old").exists() and not (parent / "step-2").exists()
        found = latest(parent)
        value = -1 if found is None else found.state["value"]
        assert value in (done - 1, done), f"killed at call {root.name}: {done} saves returned, found {value}"
        assert found is None or found.tensors["x"].tolist() == [value] * 64
        new[value == done] += 1
        put(parent / "step-9", 9)
        assert not any(name.startswith(".") for name in names(parent))
        assert found is None or value_of(parent / f"step-{(1, 2, 2)[value]}") == value
    assert caplog.text == ""
    assert len(roots) > 80
    assert new[True] >= 3
    assert moved > 0


def test_everything_is_synced_before_the_rename_and_the_parent_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def renamed(old: Path, new: Path) -> None:
        events.append(f"{old.name} -> {new.name}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=0))
    put(tmp_path / "checkpoints" / "step-1", 1)
    partial = f".step-1.tmp-{'0' * 32}"
    entered = [tmp_path.name, "checkpoints"]
    files = ["tensors.safetensors", "state.json", "manifest.json", partial]
    assert events == [*entered, *files, f"{partial} -> step-1", "checkpoints"]
    events.clear()
    put(tmp_path / "checkpoints" / "step-1", 2)
    swap = ["step-1 -> .step-1.old", f"{partial} -> step-1"]
    assert events == ["checkpoints", *files, *swap, "checkpoints"]


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_full_at_any_call_leaves_the_old_and_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, replaced: bool
) -> None:
    put(tmp_path / "step-1", 1)
    if replaced:
        put(tmp_path / "step-2", 1)
    before, failures = names(tmp_path), 0
    for failing in range(1, 100):
        with monkeypatch.context() as patch:
            fail_at(patch, failing, code)
            try:
                put(tmp_path / "step-2", 2)
                break
            except StorageFull:
                failures += 1
        at_the_end = value_of(tmp_path / "step-2") == 2  # only the last fsync was refused
        assert value_of(tmp_path / "step-2") == (2 if at_the_end else 1 if replaced else None)
        assert names(tmp_path) == (["step-1", "step-2"] if at_the_end else before)
        assert value_of(tmp_path / "step-1") == 1
    assert failures > 10
    assert value_of(tmp_path / "step-2") == 2


def fail_at(patch: pytest.MonkeyPatch, number: int, code: int) -> None:
    """Let the `number`-th call that may need room fail with `code`; a write writes half before."""
    calls = 0

    def failing(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return call

    for name in ("open", "write", "fsync", "mkdir", "rename"):
        patch.setattr(os, name, failing(name))


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path) -> None:
    put(tmp_path / "step-1", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))
    try:
        with pytest.raises(
            StorageFull, match=r"checkpoint step-2 \(File too large\); what was saved before is intact"
        ):
            put(tmp_path / "step-2", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-1"]


def test_another_error_of_the_disk_is_passed_on_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, 4, errno.EIO)
        with pytest.raises(OSError, match="Input/output error"):
            put(tmp_path / "step-1", 1)
    assert names(tmp_path) == []


def test_a_sweep_gives_the_old_its_name_back_only_where_there_is_no_new(tmp_path: Path) -> None:
    for name in ("step-1", ".step-1.old", ".step-2.old", f".step-3.tmp-{'a' * 32}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "was").write_text(name)
    (tmp_path / f".results.json.tmp-{'b' * 32}").touch()
    sweep(tmp_path)
    assert names(tmp_path) == ["step-1", "step-2"]
    assert (tmp_path / "step-1" / "was").read_text() == "step-1"
    assert (tmp_path / "step-2" / "was").read_text() == ".step-2.old"
