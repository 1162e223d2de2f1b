"""A registry in a bucket: compare-and-set among writers, what a kill leaves, what a prune spares."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from brainstacks.errors import Conflict, CorruptBlob, StaleGeneration
from brainstacks.stacks import object_store
from brainstacks.stacks.artifact import sha256_file
from brainstacks.stacks.bucket import Bucket as Objects
from brainstacks.stacks.manifest import Published
from brainstacks.stacks.object_store import UNDER_WAY
from brainstacks.stacks.verify import verify
from tests.stacks.faulty_proxy import Drop, FaultyProxy, Hook, Refuse, once
from tests.stacks.files import write_stack
from tests.stacks.places import Bucket, blobs, lose

ROOT = Path(__file__).parents[2]


# writers


def test_of_four_writers_that_expect_one_generation_one_wins_every_time(
    bucket: Bucket, tmp_path: Path
) -> None:
    writers, rounds = 4, 3
    registries = [bucket.open() for _ in range(writers)]
    together = threading.Barrier(writers)
    won: list[Published] = []
    lost: list[Exception] = []

    def write(number: int) -> None:
        for generation in range(rounds):
            file = write_stack(tmp_path / f"{number}-{generation}", seed=10 * number + generation)
            try:
                won.append(
                    registries[number].publish(
                        file, expected_generation=generation, check=lambda _: together.wait(60)
                    )
                )
            except StaleGeneration as error:
                lost.append(error)
            together.wait(60)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(published.generation for published in won) == [1, 2, 3]
    assert len(lost) == (writers - 1) * rounds
    manifest = bucket.open().snapshot()
    assert manifest.generation == rounds
    served = [version.digest for version in manifest.domain("chat").versions]
    assert served == [p.digest for p in sorted(won, key=lambda p: p.generation)]


def test_a_writer_that_others_are_always_faster_than_gives_up_and_changes_nothing(
    bucket: Bucket, chat: Path, chat2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, other = bucket.open(), bucket.open()
    registry.publish(chat)
    monkeypatch.setattr("brainstacks.stacks.ledger.PAUSES", (0, 0, 0))
    replace = Objects.replace

    def too_late(self: Objects, key: str, content: bytes, tag: str | None) -> str:
        with monkeypatch.context() as alone:
            alone.setattr(Objects, "replace", replace)
            other.activate("chat", 1)
            other.publish(write_stack(chat.parent / "law", "law", seed=other.reload().generation))
        return replace(self, key, content, tag)

    monkeypatch.setattr(Objects, "replace", too_late)
    with pytest.raises(Conflict, match="other writers keep changing"):
        registry.publish(chat2)
    assert bucket.open().snapshot().domain("chat").current.digest == sha256_file(chat)
    assert bucket.open().generation == 4, "the other's three changes alone"


@pytest.mark.parametrize("lost", [Drop(), Refuse(500, "InternalError")], ids=["dropped", "500"])
def test_a_change_whose_answer_is_lost_is_made_once_and_known_to_be(
    bucket: Bucket, proxy: FaultyProxy, chat: Path, lost: Exception
) -> None:
    """The client tries again, and then the manifest is not the one any more that it expects: its own is."""
    registry = bucket.open()
    proxy.after = once("PUT", "manifest.json", lost)
    published = registry.publish(chat, expected_generation=0)
    assert published == Published("chat", 1, sha256_file(chat), generation=1, created=True)
    assert bucket.open().generation == 1


@pytest.mark.parametrize("published_before", [False, True])
def test_a_conflict_that_the_store_sees_among_its_own_parts_is_tried_again(
    bucket: Bucket, proxy: FaultyProxy, chat: Path, chat2: Path, published_before: bool
) -> None:
    """S3 answers 409 where two conditional writes meet and it has not decided on either."""
    registry = bucket.open()
    if published_before:
        registry.publish(chat2)
    proxy.before = once("PUT", "manifest.json", Refuse(409, "ConditionalRequestConflict"))
    published = registry.publish(chat, expected_generation=int(published_before))
    assert (published.created, published.generation) == (True, 1 + published_before)
    assert bucket.open().snapshot().domain("chat").current.digest == sha256_file(chat)


# kills

PUBLISH = """
import sys
from pathlib import Path
from brainstacks.stacks.blob_cache import BlobCache
from brainstacks.stacks.registry import Registry

Registry(sys.argv[1], cache=BlobCache(Path(sys.argv[2]))).publish(Path(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("published_before", [False, True])
def test_a_publisher_that_is_killed_at_any_request_leaves_the_old_or_the_new(
    bucket: Bucket, proxy: FaultyProxy, tmp_path: Path, chat: Path, published_before: bool
) -> None:
    large = write_stack(tmp_path / "large", description="x" * 100, rounds=64, seed=9)
    if published_before:
        bucket.open().publish(chat)
    old = [sha256_file(chat)] if published_before else []
    allowed, seen = [old, [*old, sha256_file(large)]], []
    for deadly in range(1, 20):
        for moment in ("before", "after"):
            command = [sys.executable, "-c", PUBLISH, bucket.root, str(tmp_path / "own-cache"), str(large)]
            process = subprocess.Popen(command, cwd=ROOT)
            setattr(proxy, moment, _killer(process, deadly))
            code = process.wait(timeout=60)
            proxy.before = proxy.after = lambda request: None
            assert code in (0, -signal.SIGKILL)
            restarted = bucket.open()
            digests = [version.digest for version in restarted.snapshot().versions()]
            assert digests in allowed
            assert verify(restarted) == []
            seen.append(digests)
            restarted.prune()
            assert set(digests) <= set(blobs(bucket)) <= {*digests, sha256_file(large)}
            if digests != old:
                restarted.activate("chat", 1) if old else restarted.delete("chat")
                restarted.prune(keep=0)
        if code == 0:
            break
    assert code == 0
    assert allowed[0] in seen
    assert allowed[1] in seen[:-2]
    bucket.open().publish(large)
    assert verify(bucket.open()) == []


UPLOAD = """
import sys
from pathlib import Path
from brainstacks.stacks.bucket import Bucket

Bucket.open(sys.argv[1]).upload("blob", Path(sys.argv[2]))
"""


def test_a_kill_amid_the_parts_of_a_large_file_leaves_nothing_of_it(
    bucket: Bucket, proxy: FaultyProxy, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(b"x" * (12 << 20))
    process = subprocess.Popen([sys.executable, "-c", UPLOAD, bucket.root, str(tmp_path / "large")], cwd=ROOT)
    kill = _killer(process, 1)
    proxy.before = lambda request: kill(request) if "partNumber=3" in request else None
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert any("partNumber=" in request for request in proxy.asked)
    proxy.before = lambda request: None
    store = Objects.open(bucket.root)
    assert store.list() == {}
    store.upload("blob", tmp_path / "large")
    assert store.size("blob") == 12 << 20


def _killer(process: subprocess.Popen[bytes], deadly: int) -> Hook:
    left = deadly

    def hook(request: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            raise Drop

    return hook


# pruning


def test_what_a_publisher_has_put_and_not_yet_named_is_not_pruned(
    bucket: Bucket, chat: Path, chat2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, other = bucket.open(), bucket.open()
    registry.publish(chat)
    replace, pruned = Objects.replace, []

    def slowly(self: Objects, key: str, content: bytes, tag: str | None) -> str:
        pruned.append(other.prune().blobs)
        return replace(self, key, content, tag)

    monkeypatch.setattr(Objects, "replace", slowly)
    digest = registry.publish(chat2).digest
    assert pruned == [0]
    assert digest in blobs(bucket)


def test_what_a_dead_publisher_put_is_pruned_when_the_next_change_or_an_hour_is_over(
    bucket: Bucket, chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = bucket.open()
    registry.publish(chat)
    left = ["a" * 64, "b" * 64]
    bucket.write(f"blobs/sha256/{left[0]}", b"left")
    assert registry.prune().blobs == 0
    registry.publish(write_stack(chat.parent / "new", seed=5))
    assert registry.prune().blobs == 1
    bucket.write(f"blobs/sha256/{left[1]}", b"left")
    assert registry.prune().blobs == 0
    monkeypatch.setattr(object_store, "UNDER_WAY", -UNDER_WAY)  # an hour later
    assert registry.prune().blobs == 1
    assert verify(registry) == []


def test_of_equal_times_a_file_counts_as_the_newer_one(
    bucket: Bucket, chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 tells whole seconds."""
    registry = bucket.open()
    registry.publish(chat)
    listing = Objects.list

    def whole_day(self: Objects) -> object:
        return {
            key: type(one)(one.size, one.modified.replace(hour=0, minute=0, second=0, microsecond=0))
            for key, one in listing(self).items()
        }

    monkeypatch.setattr(Objects, "list", whole_day)
    monkeypatch.setattr(object_store, "UNDER_WAY", 24 * UNDER_WAY)
    registry.delete("chat", purge=True)
    assert blobs(bucket) == [sha256_file(chat)]


def test_a_file_that_was_pruned_before_its_manifest_came_is_put_again(
    bucket: Bucket, chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Objects.replace

    def pruned_meanwhile(self: Objects, key: str, content: bytes, tag: str | None) -> str:
        lose(bucket, sha256_file(chat))
        return replace(self, key, content, tag)

    monkeypatch.setattr(Objects, "replace", pruned_meanwhile)
    bucket.open().publish(chat)
    assert verify(bucket.open()) == []


def test_a_prune_says_what_came_to_be_published_while_it_was_deleted(
    bucket: Bucket, chat: Path, chat2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, other = bucket.open(), bucket.open()
    digest = registry.publish(chat).digest
    registry.delete("chat")
    registry.publish(chat2)
    delete = Objects.delete

    def late(self: Objects, keys: list[str]) -> None:
        assert other.publish(chat).digest == digest
        delete(self, keys)

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "delete", late)
        with pytest.raises(CorruptBlob, match="was published while its bytes were deleted"):
            registry.prune()
    assert len(verify(bucket.open())) == 1
