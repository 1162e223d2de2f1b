"""`brainstacks.durable`: the old or the new, on disk before it is seen, and nothing beside it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from brainstacks.durable import (
    atomic_write,
    creating,
    creating_directory,
    partial,
    replacing,
    storage_full,
    sweep,
    write_file,
)
from brainstacks.errors import StorageFull


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for text in ("old", "näw\n"):
        atomic_write(tmp_path / "results.json", text)
        assert (tmp_path / "results.json").read_text(encoding="utf-8") == text
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize("function", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, code: int
) -> None:
    atomic_write(tmp_path / "results.json", "old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(code, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, full)
        with pytest.raises(StorageFull, match=r"no room to write results\.json \(injected\)"):
            atomic_write(tmp_path / "results.json", "new")
    assert os.listdir(tmp_path) == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "old"


def test_the_file_is_synced_before_it_is_renamed_and_the_directory_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def replaced(old: Path, new: Path) -> None:
        events.append(f"{old.name} -> {new.name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    with replacing(tmp_path / "file", tmp_path / "new") as temporary:
        write_file(temporary, [b"content"])
    assert events == ["new", "new -> file", tmp_path.name]


def test_what_fails_while_it_is_written_is_passed_on_and_leaves_the_old(tmp_path: Path) -> None:
    atomic_write(tmp_path / "file", "old")
    with pytest.raises(InterruptedError), replacing(tmp_path / "file") as temporary:
        write_file(temporary, halfway())
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def halfway() -> Iterator[bytes]:
    yield b"half"
    raise InterruptedError


def test_a_file_is_created_as_a_whole_and_one_that_came_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with creating(path) as temporary:
        write_file(temporary, [b"new"])
        assert not path.exists()
    assert path.read_bytes() == b"new"
    with pytest.raises(FileExistsError), creating(path) as temporary:
        write_file(temporary, [b"newer"])
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:7]))
    write_file(tmp_path / "file", [bytes(range(100)), b"", b"end"])
    assert (tmp_path / "file").read_bytes() == bytes(range(100)) + b"end"


def test_a_sweep_takes_partial_files_and_directories_and_nothing_of_others(tmp_path: Path) -> None:
    partial(tmp_path / "stack.safetensors").touch()
    directory = partial(tmp_path / "step-1")
    directory.mkdir()
    (directory / "inside").touch()
    others = [".hidden", ".notes.tmp-1", "mine.tmp-" + "0" * 32]
    for name in others:
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == others


def test_another_error_of_the_disk_is_passed_on() -> None:
    with pytest.raises(OSError, match="injected"), storage_full("it"):
        raise OSError(errno.EIO, "injected")


def test_a_store_says_its_own_way_out() -> None:
    with (
        pytest.raises(StorageFull, match=r"^it does not fit \(full\)$"),
        storage_full("it", "{what} does not fit ({why})"),
    ):
        raise OSError(errno.ENOSPC, "full")


def test_a_directory_appears_whole_and_replaces_nothing(tmp_path: Path) -> None:
    with creating_directory(tmp_path / "merged") as making:
        write_file(making / "config.json", [b"{}"])
        assert not (tmp_path / "merged").exists()
    assert (tmp_path / "merged" / "config.json").read_bytes() == b"{}"
    with pytest.raises(FileExistsError), creating_directory(tmp_path / "merged") as making:
        write_file(making / "other.json", [b"[]"])
    with pytest.raises(StorageFull, match="no room to write full"), creating_directory(tmp_path / "full"):
        raise OSError(errno.ENOSPC, "injected")
    assert [path.name for path in tmp_path.rglob("*")] == ["merged", "config.json"]
