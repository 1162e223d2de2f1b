"""Publishing and compare-and-set: versions in order, of what was checked, and one winner of two at once."""

from __future__ import annotations

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
from tests.stacks.files import DIMS, write_router, write_stack
from tests.stacks.places import Bucket, Place, blobs, spoil

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


def test_publishes_versions_in_order(placed: Registry, place: Place, tmp_path: Path, chat: Path) -> None:
    first = placed.publish(chat)
    assert first == Published("chat", 1, sha256_file(chat), generation=1, created=True)
    code = placed.publish(write_stack(tmp_path / "code", "code"), domain="code", expected_generation=1)
    second = placed.publish(write_stack(tmp_path / "new", seed=1))
    assert [(p.name, p.version, p.generation) for p in (code, second)] == [("code", 1, 2), ("chat", 2, 3)]
    manifest = place.open().snapshot()
    assert manifest == placed.snapshot()
    assert list(manifest.domains) == ["chat", "code"]
    history = manifest.domain("chat")
    assert [version.version for version in history.versions] == [1, 2]
    assert (history.current.digest, history.current.rounds, history.current.rank) == (second.digest, 2, 2)
    assert placed.blob_path(second.digest).read_bytes() == (tmp_path / "new").read_bytes()
    assert chat.exists()


def test_the_same_bytes_again_change_nothing(placed: Registry, place: Place, chat: Path) -> None:
    first = placed.publish(chat)
    before = place.content()
    assert placed.publish(chat) == Published("chat", 1, first.digest, generation=1, created=False)
    assert place.content() == before


def test_bytes_of_an_older_version_make_it_serve_again(placed: Registry, chat: Path, chat2: Path) -> None:
    placed.publish(chat)
    placed.publish(chat2)
    assert placed.publish(chat) == Published("chat", 1, sha256_file(chat), generation=3, created=False)
    assert len(placed.snapshot().domain("chat").versions) == 2


def test_the_same_bytes_again_repair_a_damaged_copy(placed: Registry, place: Place, chat: Path) -> None:
    digest = placed.publish(chat).digest
    spoil(place, digest)
    with pytest.raises(CorruptBlob):
        placed.blob_path(digest, anew=True)
    assert placed.publish(chat).created is False
    assert placed.blob_path(digest).read_bytes() == chat.read_bytes()
    assert verify(placed) == []


def test_a_file_of_another_domain_is_refused(placed: Registry, chat: Path) -> None:
    with pytest.raises(InvalidArtifact, match="a stack of 'chat'"):
        placed.publish(chat, domain="code")
    for name in ("../x", "base", "%2e%2e", "a\0", "x" * 5000):
        with pytest.raises(InvalidArtifact) as caught:
            placed.publish(chat, domain=name)
        assert caught.value.code == "invalid_domain"
    assert placed.reload().generation == 0


def test_an_unsound_file_leaves_no_trace(placed: Registry, place: Place, tmp_path: Path, chat: Path) -> None:
    placed.publish(chat)
    before = place.content()
    (tmp_path / "bad").write_bytes(chat.read_bytes()[:-1])
    with pytest.raises(InvalidArtifact, match="cut short"):
        placed.publish(tmp_path / "bad")
    assert place.content() == before


def test_the_callers_check_refuses_another_base(placed: Registry, chat: Path) -> None:
    def check(stack: StackFile) -> None:
        check_base(stack.metadata, "0" * 64, DIMS, 2)

    with pytest.raises(IncompatibleArtifact, match="fingerprint"):
        placed.publish(chat, check=check)
    assert placed.reload().generation == 0


def test_what_was_checked_is_what_is_stored_whatever_becomes_of_the_file(
    placed: Registry, chat: Path
) -> None:
    content = chat.read_bytes()
    published = placed.publish(chat, check=lambda stack: chat.write_bytes(b"something else"))
    assert placed.blob_path(published.digest, anew=True).read_bytes() == content


# compare and set


def test_a_stale_generation_is_refused_everywhere(placed: Registry, tmp_path: Path, chat: Path) -> None:
    digest = placed.publish(chat).digest
    router = write_router(tmp_path / "router", {"chat": digest})
    placed.publish_router(router)
    changes: list[Callable[[], Published]] = [
        lambda: placed.publish(chat, expected_generation=1),
        lambda: placed.publish_router(router, expected_generation=1),
        lambda: placed.activate("chat", 1, expected_generation=3),
        lambda: placed.activate_router(1, expected_generation=0),
        lambda: placed.delete("chat", expected_generation=1),
    ]
    for change in changes:
        with pytest.raises(StaleGeneration, match="at generation 2"):
            change()
    assert placed.reload().generation == 2


@pytest.mark.parametrize("expected", [None, 0])
def test_of_two_publications_of_one_domain_at_once_one_wins(
    place: Place, chat: Path, chat2: Path, expected: int | None
) -> None:
    place.open(create=True)
    both_have_begun = threading.Barrier(2)
    outcomes: list[Published | BrainstacksError] = []

    def publish(file: Path) -> None:
        try:
            outcomes.append(
                place.open().publish(
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
    manifest = place.open().snapshot()
    assert manifest.domain("chat").current.digest == winner.digest
    place.open().prune()
    assert winner.digest in blobs(place)
    assert len(blobs(place)) == 1 or isinstance(place, Bucket), (
        "a lock's holder takes out what it put in vain"
    )


def test_publications_of_different_domains_at_once_all_arrive(place: Place, tmp_path: Path) -> None:
    place.open(create=True)
    names = [f"domain-{number}" for number in range(6)]
    all_have_begun = threading.Barrier(len(names))

    def publish(name: str) -> None:
        file = write_stack(tmp_path / name, name)
        place.open().publish(file, check=lambda _: all_have_begun.wait(10))

    threads = [threading.Thread(target=publish, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    manifest = place.open().snapshot()
    assert (sorted(manifest.domains), manifest.generation) == (names, 6)


def test_other_processes_changes_are_seen_on_reload(placed: Registry, place: Place, chat: Path) -> None:
    place.open().publish(chat)
    assert placed.generation == 0
    assert placed.reload().generation == 1
    assert list(placed.snapshot().domains) == ["chat"]


def test_a_snapshot_never_changes(placed: Registry, chat: Path) -> None:
    before = placed.snapshot()
    placed.publish(chat)
    assert list(before.domains) == []
    with pytest.raises(TypeError):
        placed.snapshot().domains["x"] = None  # type: ignore[index]
