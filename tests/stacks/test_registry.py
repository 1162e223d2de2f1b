"""Publishing and compare-and-set: versions in order, of what was checked, and one winner of two at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from brainstacks.errors import (
    BrainstacksError,
    Conflict,
    CorruptBlob,
    IncompatibleArtifact,
    InvalidArtifact,
    StaleGeneration,
)
from brainstacks.stacks.artifact import StackFile, check_base, sha256_file
from brainstacks.stacks.manifest import Published
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.verify import verify
from tests.stacks.files import DIMS, flip, tree, write_router, write_stack

# publishing


def test_what_was_checked_while_it_was_stored_is_not_read_again_to_be_served(
    registry: Registry, chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return sha256_file(path)

    monkeypatch.setattr("brainstacks.stacks.blobs.sha256_file", counted)
    path = registry.blob_path(registry.publish(chat).digest)
    assert hashed == []
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(CorruptBlob):
        registry.blob_path(path.name)
    assert hashed == [path]


def test_publishes_versions_in_order(registry: Registry, root: Path, tmp_path: Path, chat: Path) -> None:
    first = registry.publish(chat)
    assert first == Published("chat", 1, sha256_file(chat), generation=1, created=True)
    code = registry.publish(write_stack(tmp_path / "code", "code"), domain="code", expected_generation=1)
    second = registry.publish(write_stack(tmp_path / "new", seed=1))
    assert [(p.name, p.version, p.generation) for p in (code, second)] == [("code", 1, 2), ("chat", 2, 3)]
    manifest = Registry(root).snapshot()
    assert manifest == registry.snapshot()
    assert list(manifest.domains) == ["chat", "code"]
    history = manifest.domain("chat")
    assert [version.version for version in history.versions] == [1, 2]
    assert (history.current.digest, history.current.rounds, history.current.rank) == (second.digest, 2, 2)
    assert registry.blob_path(second.digest).read_bytes() == (tmp_path / "new").read_bytes()
    assert chat.exists()


def test_the_same_bytes_again_change_nothing(registry: Registry, root: Path, chat: Path) -> None:
    first = registry.publish(chat)
    before = (root / "manifest.json").read_bytes()
    assert registry.publish(chat) == Published("chat", 1, first.digest, generation=1, created=False)
    assert (root / "manifest.json").read_bytes() == before


def test_bytes_of_an_older_version_make_it_serve_again(registry: Registry, chat: Path, chat2: Path) -> None:
    registry.publish(chat)
    registry.publish(chat2)
    assert registry.publish(chat) == Published("chat", 1, sha256_file(chat), generation=3, created=False)
    assert len(registry.snapshot().domain("chat").versions) == 2


def test_the_same_bytes_again_repair_a_damaged_copy(registry: Registry, root: Path, chat: Path) -> None:
    digest = registry.publish(chat).digest
    flip(registry.blob_path(digest))
    with pytest.raises(CorruptBlob):
        registry.blob_path(digest)
    assert registry.publish(chat).created is False
    assert registry.blob_path(digest).read_bytes() == chat.read_bytes()
    assert verify(registry) == []


def test_a_file_of_another_domain_is_refused(registry: Registry, chat: Path) -> None:
    with pytest.raises(InvalidArtifact, match="a stack of 'chat'"):
        registry.publish(chat, domain="code")
    for name in ("../x", "base", "%2e%2e", "a\0", "x" * 5000):
        with pytest.raises(InvalidArtifact) as caught:
            registry.publish(chat, domain=name)
        assert caught.value.code == "invalid_domain"
    assert registry.reload().generation == 0


def test_an_unsound_file_leaves_no_trace(registry: Registry, root: Path, tmp_path: Path, chat: Path) -> None:
    registry.publish(chat)
    before = tree(root)
    (tmp_path / "bad").write_bytes(chat.read_bytes()[:-1])
    with pytest.raises(InvalidArtifact, match="cut short"):
        registry.publish(tmp_path / "bad")
    assert tree(root) == before


def test_the_callers_check_refuses_another_base(registry: Registry, chat: Path) -> None:
    def check(stack: StackFile) -> None:
        check_base(stack.metadata, "0" * 64, DIMS, 2)

    with pytest.raises(IncompatibleArtifact, match="fingerprint"):
        registry.publish(chat, check=check)
    assert registry.reload().generation == 0


def test_what_was_checked_is_what_is_stored_whatever_becomes_of_the_file(
    registry: Registry, chat: Path
) -> None:
    content = chat.read_bytes()
    published = registry.publish(chat, check=lambda stack: chat.write_bytes(b"something else"))
    assert registry.blob_path(published.digest, anew=True).read_bytes() == content


# compare and set


def test_a_stale_generation_is_refused_everywhere(registry: Registry, tmp_path: Path, chat: Path) -> None:
    digest = registry.publish(chat).digest
    router = write_router(tmp_path / "router", {"chat": digest})
    registry.publish_router(router)
    changes: list[Callable[[], Published]] = [
        lambda: registry.publish(chat, expected_generation=1),
        lambda: registry.publish_router(router, expected_generation=1),
        lambda: registry.activate("chat", 1, expected_generation=3),
        lambda: registry.activate_router(1, expected_generation=0),
        lambda: registry.delete("chat", expected_generation=1),
    ]
    for change in changes:
        with pytest.raises(StaleGeneration, match="at generation 2"):
            change()
    assert registry.reload().generation == 2


@pytest.mark.parametrize("expected", [None, 0])
def test_of_two_publications_of_one_domain_at_once_one_wins(
    root: Path, chat: Path, chat2: Path, expected: int | None
) -> None:
    Registry(root, create=True)
    both_have_begun = threading.Barrier(2)
    outcomes: list[Published | BrainstacksError] = []

    def publish(file: Path) -> None:
        try:
            outcomes.append(
                Registry(root).publish(
                    file, expected_generation=expected, check=lambda _: both_have_begun.wait(10)
                )
            )
        except BrainstacksError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=publish, args=(file,)) for file in (chat, chat2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Published)]
    (loser,) = [outcome for outcome in outcomes if isinstance(outcome, BrainstacksError)]
    assert isinstance(loser, Conflict if expected is None else StaleGeneration)
    manifest = Registry(root).snapshot()
    assert manifest.domain("chat").current.digest == winner.digest
    assert sorted(os.listdir(root / "blobs" / "sha256")) == [winner.digest]


def test_publications_of_different_domains_at_once_all_arrive(root: Path, tmp_path: Path) -> None:
    Registry(root, create=True)
    names = [f"domain-{number}" for number in range(6)]
    all_have_begun = threading.Barrier(len(names))

    def publish(name: str) -> None:
        file = write_stack(tmp_path / name, name)
        Registry(root).publish(file, check=lambda _: all_have_begun.wait(10))

    threads = [threading.Thread(target=publish, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    manifest = Registry(root).snapshot()
    assert (sorted(manifest.domains), manifest.generation) == (names, 6)


def test_other_processes_changes_are_seen_on_reload(registry: Registry, root: Path, chat: Path) -> None:
    Registry(root).publish(chat)
    assert registry.generation == 0
    assert registry.reload().generation == 1
    assert list(registry.snapshot().domains) == ["chat"]


def test_a_snapshot_never_changes(registry: Registry, chat: Path) -> None:
    before = registry.snapshot()
    registry.publish(chat)
    assert list(before.domains) == []
    with pytest.raises(TypeError):
        registry.snapshot().domains["x"] = None  # type: ignore[index]
