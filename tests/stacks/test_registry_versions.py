"""Versions of stacks and of routers: rolled back, deleted and pruned, and no number is given twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from brainstacks.errors import (
    ConfigError,
    CorruptBlob,
    DomainNotFound,
    IncompatibleArtifact,
    NotFound,
    VersionNotFound,
)
from brainstacks.stacks.artifact import sha256_file
from brainstacks.stacks.manifest import Pruned, Published
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.verify import verify
from tests.stacks.files import flip, write_router, write_stack

# rolling back, deleting, pruning


def test_rolls_back_and_forward(registry: Registry, chat: Path, chat2: Path) -> None:
    registry.publish(chat)
    registry.publish(chat2)
    assert registry.activate("chat", 1) == Published("chat", 1, sha256_file(chat), 3, created=False)
    assert registry.activate("chat", 1).generation == 3
    assert registry.activate("chat", 2).digest == sha256_file(chat2)
    with pytest.raises(VersionNotFound, match="no version 3; there are 1, 2"):
        registry.activate("chat", 3)
    with pytest.raises(DomainNotFound, match="published are chat"):
        registry.activate("../x", 1)


def test_a_damaged_version_cannot_be_activated(registry: Registry, chat: Path, chat2: Path) -> None:
    flip(registry.blob_path(registry.publish(chat).digest))
    registry.publish(chat2)
    with pytest.raises(CorruptBlob):
        registry.activate("chat", 1)
    assert registry.reload().domain("chat").active == 2


def test_version_numbers_are_never_given_twice(
    registry: Registry, root: Path, chat: Path, chat2: Path
) -> None:
    registry.publish(chat)
    registry.publish(chat2)
    registry.activate("chat", 1)
    assert registry.prune(keep=0).versions == 1
    registry.delete("chat")
    assert Registry(root).publish(chat2).version == 3


def test_deleting_frees_the_disk_only_when_asked(
    registry: Registry, root: Path, chat: Path, chat2: Path
) -> None:
    registry.publish(chat)
    registry.publish(chat2)
    with open(registry.blob_path(sha256_file(chat2)), "rb") as reader:
        deleted = registry.delete("chat")
        assert deleted == Published("chat", 2, sha256_file(chat2), 3, created=False)
        assert list(registry.snapshot().domains) == []
        assert len(os.listdir(root / "blobs" / "sha256")) == 2
        assert registry.discard([sha256_file(chat2)]) == chat2.stat().st_size
        assert reader.read() == chat2.read_bytes()
    registry.publish(chat)
    registry.delete("chat", purge=True)
    assert (registry.total_bytes(), os.listdir(root / "blobs" / "sha256")) == (0, [])
    with pytest.raises(DomainNotFound):
        registry.delete("chat")


def test_a_version_that_is_listed_is_never_discarded(registry: Registry, chat: Path) -> None:
    digest = registry.publish(chat).digest
    assert registry.discard([digest]) == 0
    assert registry.blob_path(digest).exists()


def test_pruning_keeps_what_serves_and_the_newest(registry: Registry, root: Path, tmp_path: Path) -> None:
    files = [write_stack(tmp_path / str(seed), seed=seed) for seed in range(5)]
    for file in files:
        registry.publish(file)
    registry.activate("chat", 2)
    assert registry.prune() == Pruned(0, 0, 0)
    assert registry.prune(keep=1) == Pruned(3, 3, 3 * files[0].stat().st_size)
    assert [version.version for version in registry.snapshot().domain("chat").versions] == [2, 5]
    assert verify(registry) == []
    with pytest.raises(ConfigError, match="keep is -1"):
        registry.prune(keep=-1)


# routers


def test_publishes_and_rolls_back_a_router(registry: Registry, tmp_path: Path, chat: Path) -> None:
    with pytest.raises(NotFound, match="has no router"):
        registry.activate_router(1)
    digest = registry.publish(chat).digest
    files = [write_router(tmp_path / str(seed), {"chat": digest}, seed) for seed in (0, 1)]
    published = [registry.publish_router(file) for file in (*files, files[1])]
    assert [(p.version, p.generation, p.created) for p in published] == [
        (1, 2, True),
        (2, 3, True),
        (2, 3, False),
    ]
    assert registry.activate_router(1).digest == sha256_file(files[0])
    router = registry.snapshot().router
    assert router is not None
    assert (router.active, len(router.versions)) == (1, 2)
    assert verify(registry) == []


def test_a_router_over_unknown_domains_is_refused(registry: Registry, tmp_path: Path, chat: Path) -> None:
    registry.publish(chat)
    file = write_router(tmp_path / "router", {"chat": "a" * 64, "law": "b" * 64})
    with pytest.raises(IncompatibleArtifact, match="routes to law"):
        registry.publish_router(file)
    assert registry.reload().router is None


def test_a_router_is_not_rolled_back_to_domains_that_were_deleted(
    registry: Registry, tmp_path: Path, chat: Path
) -> None:
    registry.publish(chat)
    for seed in range(2):
        registry.publish_router(write_router(tmp_path / f"router-{seed}", {"chat": "a" * 64}, seed))
    registry.delete("chat")
    with pytest.raises(IncompatibleArtifact, match="routes to chat"):
        registry.activate_router(1)
    assert registry.snapshot().routers().active == 2
