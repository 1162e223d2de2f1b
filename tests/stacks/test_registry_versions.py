"""Versions of stacks and of routers: rolled back, deleted and pruned, and no number is given twice."""

from __future__ import annotations

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
from tests.stacks.files import write_router, write_stack
from tests.stacks.places import Place, blobs, spoil

# rolling back, deleting, pruning


def test_rolls_back_and_forward(placed: Registry, chat: Path, chat2: Path) -> None:
    placed.publish(chat)
    placed.publish(chat2)
    assert placed.activate("chat", 1) == Published("chat", 1, sha256_file(chat), 3, created=False)
    assert placed.activate("chat", 1).generation == 3
    assert placed.activate("chat", 2).digest == sha256_file(chat2)
    with pytest.raises(VersionNotFound, match="no version 3; there are 1, 2"):
        placed.activate("chat", 3)
    with pytest.raises(DomainNotFound, match="published are chat"):
        placed.activate("../x", 1)


def test_a_damaged_version_cannot_be_activated(
    placed: Registry, place: Place, chat: Path, chat2: Path
) -> None:
    spoil(place, placed.publish(chat).digest)
    placed.publish(chat2)
    with pytest.raises(CorruptBlob):
        placed.activate("chat", 1)
    assert placed.reload().domain("chat").active == 2


def test_version_numbers_are_never_given_twice(
    placed: Registry, place: Place, chat: Path, chat2: Path
) -> None:
    placed.publish(chat)
    placed.publish(chat2)
    placed.activate("chat", 1)
    assert placed.prune(keep=0).versions == 1
    placed.delete("chat")
    assert place.open().publish(chat2).version == 3


def test_deleting_frees_the_disk_only_when_asked(
    placed: Registry, place: Place, chat: Path, chat2: Path
) -> None:
    placed.publish(chat)
    placed.publish(chat2)
    with open(placed.blob_path(sha256_file(chat2)), "rb") as reader:
        deleted = placed.delete("chat")
        assert deleted == Published("chat", 2, sha256_file(chat2), 3, created=False)
        assert list(placed.snapshot().domains) == []
        assert len(blobs(place)) == 2
        assert placed.discard([sha256_file(chat2)]) == chat2.stat().st_size
        assert reader.read() == chat2.read_bytes()
    placed.publish(chat)
    placed.delete("chat", purge=True)
    assert (placed.total_bytes(), blobs(place)) == (0, [])
    with pytest.raises(DomainNotFound):
        placed.delete("chat")


def test_a_version_that_is_listed_is_never_discarded(placed: Registry, chat: Path) -> None:
    digest = placed.publish(chat).digest
    assert placed.discard([digest]) == 0
    assert placed.blob_path(digest).exists()


def test_pruning_keeps_what_serves_and_the_newest(placed: Registry, place: Place, tmp_path: Path) -> None:
    files = [write_stack(tmp_path / str(seed), seed=seed) for seed in range(5)]
    for file in files:
        placed.publish(file)
    placed.activate("chat", 2)
    assert placed.prune() == Pruned(0, 0, 0)
    assert placed.prune(keep=1) == Pruned(3, 3, 3 * files[0].stat().st_size)
    assert [version.version for version in placed.snapshot().domain("chat").versions] == [2, 5]
    assert verify(placed) == []
    with pytest.raises(ConfigError, match="keep is -1"):
        placed.prune(keep=-1)


# routers


def test_publishes_and_rolls_back_a_router(placed: Registry, tmp_path: Path, chat: Path) -> None:
    with pytest.raises(NotFound, match="has no router"):
        placed.activate_router(1)
    digest = placed.publish(chat).digest
    files = [write_router(tmp_path / str(seed), {"chat": digest}, seed) for seed in (0, 1)]
    published = [placed.publish_router(file) for file in (*files, files[1])]
    assert [(p.version, p.generation, p.created) for p in published] == [
        (1, 2, True),
        (2, 3, True),
        (2, 3, False),
    ]
    assert placed.activate_router(1).digest == sha256_file(files[0])
    router = placed.snapshot().router
    assert router is not None
    assert (router.active, len(router.versions)) == (1, 2)
    assert verify(placed) == []


def test_a_router_over_unknown_domains_is_refused(placed: Registry, tmp_path: Path, chat: Path) -> None:
    placed.publish(chat)
    file = write_router(tmp_path / "router", {"chat": "a" * 64, "law": "b" * 64})
    with pytest.raises(IncompatibleArtifact, match="routes to law"):
        placed.publish_router(file)
    assert placed.reload().router is None


def test_a_router_is_not_rolled_back_to_domains_that_were_deleted(
    placed: Registry, tmp_path: Path, chat: Path
) -> None:
    placed.publish(chat)
    for seed in range(2):
        placed.publish_router(write_router(tmp_path / f"router-{seed}", {"chat": "a" * 64}, seed))
    placed.delete("chat")
    with pytest.raises(IncompatibleArtifact, match="routes to chat"):
        placed.activate_router(1)
    assert placed.snapshot().routers().active == 2
