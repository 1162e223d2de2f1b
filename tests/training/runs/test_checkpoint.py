"""`training.runs.checkpoint`: whole or not at all, whatever happens; and exactly what was put in."""

from __future__ import annotations

import errno
import json
import logging
import math
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
import torch
from torch import Tensor, nn

from brainstacks.errors import StorageFull
from training.runs.checkpoint import latest, load, prune, save, sweep

FILES = ["manifest.json", "state.json", "tensors.safetensors"]


def put(directory: Path, value: int) -> None:
    save(directory, {"x": torch.full((64,), value)}, {"value": value})


def value_of(directory: Path) -> int | None:
    found = load(directory)
    return None if found is None else found.state["value"]


def names(parent: Path) -> list[str]:
    return sorted(os.listdir(parent))


def damage(directory: Path) -> None:
    (directory / "state.json").write_bytes((directory / "state.json").read_bytes()[:-1])


# --- what goes in comes out ----------------------------------------------------------------------


def test_tensors_of_every_kind_come_back_bit_for_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(4, 6, generator=generator)
    table[0, 0], table[0, 1] = math.nan, -0.0
    tensors = {
        "transposed": table.T,
        "every second": table[:, ::2],
        "its storage is shared": table[1:],
        "expanded": table[:1].expand(3, 6),
        "a parameter": nn.Parameter(table),
        "a scalar": torch.tensor(3, dtype=torch.int64),
        "none": torch.empty(0, 5),
        "bool": table > 0,
        "uint8": generator.get_state(),
        "bfloat16": table.bfloat16(),
        "float8": table.to(torch.float8_e4m3fn),
        "float64": table.double(),
    }
    save(tmp_path / "step-1", tensors, {})
    found = load(tmp_path / "step-1")
    assert found is not None
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        back = found.tensors[name]
        assert (back.shape, back.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(raw(back), raw(tensor))


def raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, row-major."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def test_floats_of_the_state_come_back_bit_for_bit_and_so_do_nan_and_infinities(tmp_path: Path) -> None:
    numbers = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, math.inf, -math.inf, 2**70]
    save(
        tmp_path / "step-1", {}, {"numbers": numbers, "nan": math.nan, "text": "ä\n", "nested": {"a": [None]}}
    )
    found = load(tmp_path / "step-1")
    assert found is not None
    assert [repr(n) for n in found.state["numbers"]] == [repr(n) for n in numbers]
    assert math.isnan(found.state.pop("nan"))
    assert (found.state["text"], found.state["nested"]) == ("ä\n", {"a": [None]})


def test_what_is_loaded_can_be_written_to_and_the_checkpoint_stays_as_it_is(tmp_path: Path) -> None:
    put(tmp_path / "step-1", 1)
    found = load(tmp_path / "step-1")
    assert found is not None
    found.tensors["x"].add_(1)
    again = load(tmp_path / "step-1")
    assert again is not None
    assert again.tensors["x"].tolist() == [1] * 64


def test_the_same_content_is_the_same_bytes_whatever_the_order_of_its_names(tmp_path: Path) -> None:
    a, b = torch.ones(3), torch.zeros(2, dtype=torch.bool)
    save(tmp_path / "one", {"a": a, "b": b}, {"x": 1, "y": 2})
    save(tmp_path / "two", {"b": b, "a": a}, {"y": 2, "x": 1})
    assert names(tmp_path / "one") == FILES
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_saving_the_same_again_writes_nothing_and_saving_another_replaces_it(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "parents" / "step-1"
    put(directory, 1)
    first = directory.stat().st_ino
    put(directory, 1)
    assert directory.stat().st_ino == first
    put(directory, 2)
    assert value_of(directory) == 2
    assert names(directory.parent) == ["step-1"]


def test_a_damaged_checkpoint_is_replaced_by_the_same_one_whole(tmp_path: Path) -> None:
    put(tmp_path / "step-1", 1)
    damage(tmp_path / "step-1")
    put(tmp_path / "step-1", 1)
    assert value_of(tmp_path / "step-1") == 1


# --- what does not verify is not there -----------------------------------------------------------


def flip_a_bit(directory: Path) -> None:
    content = bytearray((directory / "tensors.safetensors").read_bytes())
    content[-1] ^= 1
    (directory / "tensors.safetensors").write_bytes(content)


def cut_the_manifest(directory: Path) -> None:
    content = (directory / "manifest.json").read_bytes()
    (directory / "manifest.json").write_bytes(content[: len(content) // 2])


def claim_another_format(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a flipped bit": flip_a_bit,
    "a cut file": damage,
    "a missing file": lambda d: (d / "state.json").unlink(),
    "no manifest": lambda d: (d / "manifest.json").unlink(),
    "a cut manifest": cut_the_manifest,
    "another manifest": lambda d: (d / "manifest.json").write_text("[]"),
    "no text": lambda d: (d / "manifest.json").write_bytes(b"\xff\xfe\xff"),
    "another format": claim_another_format,
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    put(tmp_path / "step-9", 9)
    put(tmp_path / "step-10", 10)
    DAMAGES[how](tmp_path / "step-10")
    found = latest(tmp_path)
    assert found is not None
    assert found.state == {"value": 9}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "step-10 is ignored" in caplog.text


def test_where_there_is_no_checkpoint_there_is_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load(tmp_path / "nowhere" / "step-1") is None
    assert latest(tmp_path / "nowhere") is None
    assert caplog.text == ""


def test_the_latest_is_the_highest_number_and_other_names_do_not_count(tmp_path: Path) -> None:
    for name, value in (("step-9", 9), ("step-000010", 10), ("step-x", 11), ("round-12", 12)):
        put(tmp_path / name, value)
    found = latest(tmp_path)
    assert found is not None
    assert found.state == {"value": 10}


def test_prune_keeps_the_newest_whole_ones_and_what_may_be_worth_a_look(tmp_path: Path) -> None:
    for step in range(1, 8):
        put(tmp_path / f"step-{step}", step)
    put(tmp_path / "round-0", 0)
    for step in (2, 5, 7):
        damage(tmp_path / f"step-{step}")
    prune(tmp_path, keep=2)
    assert names(tmp_path) == ["round-0", "step-4", "step-6", "step-7"]
    prune(tmp_path, keep=0)
    assert names(tmp_path) == ["round-0"]


def test_prune_never_removes_a_whole_one_for_damaged_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        put(tmp_path / f"step-{step}", step)
    damage(tmp_path / "step-2")
    damage(tmp_path / "step-3")
    prune(tmp_path, keep=1)
    assert names(tmp_path) == ["step-1", "step-2", "step-3"]


# --- kills, power cuts, full disks ---------------------------------------------------------------

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
