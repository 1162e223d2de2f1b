"""Bytes in a local directory: whole or not at all, and nothing left behind."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

from brainstacks.errors import CorruptBlob, InvalidArtifact, StorageFull
from brainstacks.stacks.artifact import sha256_file
from brainstacks.stacks.local_store import LocalStore
from brainstacks.stacks.store import Superseded

CONTENT = b"x" * 3_000_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def blob(root: Path) -> Path:
    return root / "blobs" / "sha256" / DIGEST


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} - {"lock"}


def test_stores_bytes_under_their_digest_and_frees_them(root: Path) -> None:
    store = LocalStore(root)
    with store.writing():
        store.put([CONTENT], DIGEST)
    assert store.verified(DIGEST).read_bytes() == CONTENT
    assert (store.digests(), store.total_bytes()) == ([DIGEST], len(CONTENT))
    with store.writing():
        assert store.delete([DIGEST], None) == {DIGEST: len(CONTENT)}
        assert store.delete([DIGEST], None) == {}
    assert files(root) == set()


def test_a_damaged_copy_is_replaced_and_a_sound_one_kept(root: Path) -> None:
    store = LocalStore(root)
    with store.writing():
        store.put([CONTENT], DIGEST)
        inode = blob(root).stat().st_ino
        store.put([CONTENT], DIGEST)
        assert blob(root).stat().st_ino == inode
        blob(root).unlink()
        blob(root).write_bytes(b"damaged")
        store.put([CONTENT], DIGEST)
    assert store.verified(DIGEST).read_bytes() == CONTENT


def test_what_was_put_is_known_to_be_sound_until_the_file_changes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(root)
    with store.writing():
        store.put([CONTENT[:7], CONTENT[7:]], DIGEST)
    hashed: list[Path] = []

    def watched(path: Path) -> str:
        hashed.append(path)
        return sha256_file(path)

    monkeypatch.setattr("brainstacks.stacks.blobs.sha256_file", watched)
    assert store.verified(DIGEST) == blob(root)
    assert hashed == []
    assert store.verified(DIGEST, anew=True) == blob(root)
    assert hashed == [blob(root)]
    blob(root).chmod(0o644)
    blob(root).write_bytes(CONTENT[:-1] + b"y")
    with pytest.raises(CorruptBlob, match="do not match"):
        store.verified(DIGEST)
    blob(root).unlink()
    with pytest.raises(CorruptBlob, match="cannot be read"):
        store.verified(DIGEST)


@pytest.mark.parametrize(
    "digest", ["../manifest.json", "", "A" * 64, "a" * 63, "a" * 64 + "\n", "/" + "a" * 63]
)
def test_only_a_digest_becomes_a_path(root: Path, digest: str) -> None:
    with pytest.raises(InvalidArtifact, match="is no digest"):
        LocalStore(root).verified(digest)


@pytest.mark.parametrize("function", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_behind(
    root: Path, monkeypatch: pytest.MonkeyPatch, function: str, code: int
) -> None:
    store = LocalStore(root)
    with store.writing():
        old = store.replace_manifest(b"old", None)
        real = getattr(os, function)

        def full(target: Any, *args: Any, **kwargs: Any) -> Any:
            if function == "open" and not str(target).startswith(str(root / "tmp")):
                return real(target, *args, **kwargs)
            raise OSError(code, "injected")

        with monkeypatch.context() as patch:
            patch.setattr(os, function, full)
            with pytest.raises(StorageFull, match="no room"):
                store.put([CONTENT], DIGEST)
            with pytest.raises(StorageFull):
                store.replace_manifest(b"new", old)
    assert files(root) == {"manifest.json"}
    assert store.read_manifest() == (b"old", old)


def test_a_limit_of_the_kernel_in_the_middle_of_a_file_leaves_nothing_behind(root: Path) -> None:
    store = LocalStore(root)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with store.writing():
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) // 2, limits[1]))
        try:
            with pytest.raises(StorageFull):
                store.put([CONTENT], DIGEST)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(root) == set()


def test_other_faults_are_not_called_a_full_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "injected")

    store = LocalStore(root)
    with store.writing():
        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="injected"):
            store.put([CONTENT], DIGEST)
    assert files(root) == set()


def test_what_a_dead_writer_left_is_swept(root: Path) -> None:
    store = LocalStore(root)
    with store.writing():
        pass
    (root / "tmp" / "stray").write_bytes(CONTENT)
    with store.writing():
        assert files(root) == set()


def test_the_lock_excludes_other_writers(root: Path) -> None:
    order: list[str] = []
    waiting, entered = threading.Event(), threading.Event()

    def second() -> None:
        waiting.set()
        with LocalStore(root).writing():
            order.append("second")
            entered.set()

    thread = threading.Thread(target=second)
    with LocalStore(root).writing():
        thread.start()
        waiting.wait()
        assert not entered.wait(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_manifest_that_was_replaced_without_the_lock_is_not_replaced_in_turn(root: Path) -> None:
    store = LocalStore(root)
    with store.writing():
        seen = store.replace_manifest(b"mine", None)
        (root / "manifest.json").unlink()
        (root / "manifest.json").write_bytes(b"a hand's")
        with pytest.raises(Superseded):
            store.replace_manifest(b"mine again", seen)
        with pytest.raises(Superseded):
            store.delete([DIGEST], seen)
    assert store.read_manifest()[0] == b"a hand's"


def test_the_lock_and_every_descriptor_are_released_after_an_error(root: Path) -> None:
    store = LocalStore(root)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InvalidArtifact), store.writing():
        store.put([CONTENT], "no digest")
    with store.writing():
        assert len(os.listdir("/proc/self/fd")) == before + 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_files_of_others_among_the_blobs_are_left_alone(root: Path) -> None:
    store = LocalStore(root)
    with store.writing():
        store.put([CONTENT], DIGEST)
    (root / "blobs" / "sha256" / ".gitkeep").write_bytes(b"1")
    assert (store.digests(), store.total_bytes()) == ([DIGEST], len(CONTENT))


def test_reading_an_empty_directory_changes_nothing(root: Path) -> None:
    store = LocalStore(root)
    assert (store.read_manifest(), store.digests(), store.total_bytes()) == ((None, None), [], 0)
    assert list(root.iterdir()) == []
