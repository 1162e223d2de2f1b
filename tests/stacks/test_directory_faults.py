"""A registry in a directory: without permission, after a full disk or a kill: old or new, never a part."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brainstacks.errors import ConfigError, StorageFull, StorageUnwritable
from brainstacks.stacks.artifact import sha256_file
from brainstacks.stacks.manifest import Manifest
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.verify import verify
from tests.stacks.files import tree


def test_reading_needs_no_write_permission(registry: Registry, root: Path, chat: Path) -> None:
    digest = registry.publish(chat).digest
    (root / "lock").unlink()
    (root / "tmp").rmdir()
    for directory in (root, root / "blobs", root / "blobs" / "sha256"):
        directory.chmod(0o555)
    before = tree(root)
    reader = Registry(root)
    assert verify(reader) == []
    assert reader.blob_path(digest).exists()
    assert reader.total_bytes() == chat.stat().st_size
    assert tree(root) == before
    for directory in (root, root / "blobs", root / "blobs" / "sha256"):
        directory.chmod(0o755)


@pytest.mark.parametrize("why", [errno.EROFS, errno.EACCES])
def test_a_registry_that_cannot_be_written_is_read_and_says_why_it_takes_nothing(
    registry: Registry, chat: Path, chat2: Path, monkeypatch: pytest.MonkeyPatch, why: int
) -> None:
    registry.publish(chat)
    plain = os.open

    def read_only(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(why, os.strerror(why), path)
        return plain(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    changes: list[Callable[[], object]] = [
        lambda: registry.publish(chat2),
        lambda: registry.activate("chat", 1),
        lambda: registry.delete("chat"),
        registry.prune,
    ]
    for change in changes:
        with pytest.raises(StorageUnwritable, match=os.strerror(why)) as refused:
            change()
        assert "registry/" not in refused.value.message, "no paths reach a client"
    assert registry.reload().domain("chat").active == 1


def test_a_change_by_another_process_is_told_without_reading_the_manifest(
    root: Path, chat: Path, chat2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = Registry(root, create=True), Registry(root)
    assert not mine.changed()
    mine.publish(chat)
    assert not mine.changed(), "its own change is none"
    assert other.changed()
    other.reload()
    other.publish(chat2)
    monkeypatch.setattr(Path, "read_bytes", lambda _: 1 / 0)
    assert (mine.changed(), other.changed()) == (True, False)


def test_a_wrong_directory_is_told_apart_from_an_empty_registry(root: Path) -> None:
    with pytest.raises(ConfigError, match="no registry directory"):
        Registry(root)
    assert Registry(root, create=True).snapshot() == Manifest()
    (root / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is no directory, so no registry"):
        Registry(root / "file", create=True)


@pytest.mark.parametrize("call", range(1, 8))
def test_a_full_disk_at_any_point_leaves_the_old_version_and_no_bytes(
    registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch, chat: Path, chat2: Path, call: int
) -> None:
    old = registry.publish(chat)
    before = {path for path in tree(root) if "lock" not in path}
    calls = 0

    def failing(name: str) -> Any:
        real = getattr(os, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise OSError(errno.ENOSPC, "injected")
            return real(*args, **kwargs)

        return counted

    with monkeypatch.context() as patch:
        for name in ("write", "fsync", "replace"):
            patch.setattr(os, name, failing(name))
        with pytest.raises(StorageFull):
            registry.publish(chat2)
    assert {path for path in tree(root) if "lock" not in path} == before
    assert Registry(root).snapshot().domain("chat").current.digest == old.digest
    assert registry.publish(chat2).version == 2


def test_an_error_after_the_manifest_was_replaced_loses_no_bytes(
    registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch, chat: Path, chat2: Path
) -> None:
    registry.publish(chat)
    real, synced = os.fsync, 0

    def failing(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        if synced == 4:  # file and directory of the blob, file and directory of the manifest
            raise OSError(errno.EIO, "injected")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="injected"):
            registry.publish(chat2)
    assert registry.reload().domain("chat").current.digest == sha256_file(chat2)
    assert verify(registry) == []


KILLED_PUBLISH = """
import os, sys
from pathlib import Path
from brainstacks.stacks.registry import Registry

root, file, deadly = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
registry, calls = Registry(root), 0

def mortal(name):
    real = getattr(os, name)
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == deadly:
            if name == "write":
                real(args[0], args[1][: len(args[1]) // 2])
            os._exit(137)
        return real(*args, **kwargs)
    setattr(os, name, call)

for name in ("open", "write", "fsync", "close", "replace", "unlink", "mkdir"):
    mortal(name)
registry.publish(file)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("published_before", [False, True])
def test_a_kill_at_any_point_of_a_publish_leaves_the_old_or_the_new(
    tmp_path: Path, chat: Path, chat2: Path, published_before: bool
) -> None:
    allowed = [[], [sha256_file(chat2)]]
    if published_before:
        allowed = [[sha256_file(chat)], [sha256_file(chat), sha256_file(chat2)]]
    seen = []
    for deadly in range(1, 100):
        root = tmp_path / f"registry-{deadly}"
        registry = Registry(root, create=True)
        if published_before:
            registry.publish(chat)
        command = [sys.executable, "-c", KILLED_PUBLISH, str(root), str(chat2), str(deadly)]
        code = subprocess.run(command, cwd=Path(__file__).parents[2], timeout=60).returncode
        assert code in (0, 137)
        restarted = Registry(root)
        digests = [version.digest for version in restarted.snapshot().versions()]
        assert digests in allowed
        assert verify(restarted) == []
        seen.append(digests)
        again = restarted.publish(chat2)
        assert (again.created, again.digest) == (digests == allowed[0], sha256_file(chat2))
        assert os.listdir(root / "tmp") == []
        restarted.prune()
        assert sorted(os.listdir(root / "blobs" / "sha256")) == sorted(allowed[1])
        if code == 0:
            break
    assert code == 0
    assert len(seen) > 10
    assert seen == sorted(seen, key=len)
