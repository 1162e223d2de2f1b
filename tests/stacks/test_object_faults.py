"""A bucket that is slow, fails, is not there any more, or refuses: what is said, and what goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from brainstacks.errors import BrainstacksError, ConfigError, StorageUnwritable, Unavailable
from brainstacks.stacks import blob_cache
from brainstacks.stacks.blob_cache import BlobCache
from brainstacks.stacks.registry import Registry
from tests.stacks.faulty_proxy import Cut, Drop, FaultyProxy, Hook, Refuse, Stall, always, once
from tests.stacks.files import write_stack
from tests.stacks.places import Bucket, blobs
from tests.stacks.s3_server import ACCESS, S3Server, use

FAULTS: dict[str, tuple[Exception, str]] = {
    "slow": (Stall(), "no answer in time"),
    "failing": (Refuse(500, "InternalError"), "(500"),
    "overrun": (Refuse(503, "SlowDown"), "(503"),
    "dropped": (Drop(), "no connection, or a broken one"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_is_cached_is_served_on_and_what_is_asked_for_is_said_to_be_out_of_reach(
    bucket: Bucket,
    proxy: FaultyProxy,
    chat: Path,
    chat2: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "slow":
        monkeypatch.setattr("brainstacks.stacks.bucket_url.RETRIES", 0)  # one wait is enough to see
    registry = bucket.open()
    digest = registry.publish(chat).digest
    before = bucket.content()
    fault, why = FAULTS[kind]
    proxy.before = always(fault)
    calls: list[Callable[[], object]] = [
        registry.changed,
        registry.reload,
        lambda: registry.publish(chat2),
        lambda: registry.blob_path("a" * 64),
    ]
    for call in calls:
        with pytest.raises(Unavailable, match="cannot be reached") as told:
            call()
        assert why in told.value.message
        assert bucket.root in told.value.message
        assert told.value.code == "registry_unreachable"
    assert registry.blob_path(digest).read_bytes() == chat.read_bytes()
    assert registry.snapshot().domain("chat").current.digest == digest
    proxy.before = lambda request: None
    assert bucket.content() == before
    assert registry.publish(chat2).generation == 2


def test_a_fault_that_passes_is_nobodys_trouble(bucket: Bucket, proxy: FaultyProxy, chat: Path) -> None:
    registry = bucket.open()
    proxy.before = once("PUT", "blobs", Refuse(503, "SlowDown"))
    digest = registry.publish(chat).digest
    proxy.before = once("GET", "manifest.json", Refuse(500, "InternalError"))
    other = bucket.open()
    proxy.before = once("GET", digest, Stall())
    assert other.blob_path(digest).read_bytes() == chat.read_bytes()


@pytest.mark.parametrize("stage", ["blobs", "manifest.json"])
def test_a_bucket_that_fails_in_the_middle_of_a_publication_leaves_the_old(
    bucket: Bucket, proxy: FaultyProxy, chat: Path, chat2: Path, stage: str
) -> None:
    registry = bucket.open()
    old = registry.publish(chat)
    hook = always(Refuse(503, "SlowDown"), stage)
    proxy.before = lambda request: hook(request) if request.startswith("PUT") else None
    with pytest.raises(Unavailable, match="503 SlowDown"):
        registry.publish(chat2)
    proxy.before = lambda request: None
    assert bucket.open().snapshot().domain("chat").current.digest == old.digest
    assert registry.publish(chat2).version == 2


def test_after_it_has_vanished_a_start_goes_on_with_what_was_last_known_where_that_is_wanted(
    bucket: Bucket, proxy: FaultyProxy, tmp_path: Path, chat: Path
) -> None:
    cache = BlobCache(tmp_path / "this-machine")
    digest = Registry(bucket.root, cache=cache).publish(chat).digest
    proxy.vanish()
    with pytest.raises(Unavailable):
        Registry(bucket.root, cache=cache)
    with pytest.raises(Unavailable):
        Registry(bucket.root, cache=BlobCache(tmp_path / "another"), last_known=True)
    registry = Registry(bucket.root, cache=cache, last_known=True)
    assert registry.blob_path(digest).read_bytes() == chat.read_bytes()
    assert registry.outdated is not None
    assert registry.outdated.startswith("generation 1 is served, the last that was seen here")


def test_what_was_last_known_gives_way_to_what_is_stored_when_that_is_back(
    bucket: Bucket, proxy: FaultyProxy, tmp_path: Path, chat: Path, chat2: Path
) -> None:
    cache = BlobCache(tmp_path / "this-machine")
    Registry(bucket.root, cache=cache).publish(chat)
    bucket.open().publish(chat2)
    proxy.before = always(Drop())
    registry = Registry(bucket.root, cache=cache, last_known=True)
    assert registry.generation == 1
    with pytest.raises(Unavailable):
        registry.publish(write_stack(tmp_path / "new", seed=7))
    proxy.before = lambda request: None
    assert registry.changed()
    assert (registry.reload().generation, registry.outdated) == (2, None)


def test_a_file_that_could_not_be_fetched_is_a_reason_to_reload(
    bucket: Bucket, proxy: FaultyProxy, chat: Path
) -> None:
    digest = bucket.open().publish(chat).digest
    registry = bucket.open()
    proxy.before = always(Drop(), "blobs")
    with pytest.raises(Unavailable):
        registry.blob_path(digest)
    assert registry.changed()
    registry.reload()
    assert not registry.changed()


# downloads


def test_a_download_that_broke_off_goes_on_where_it_was(
    bucket: Bucket, proxy: FaultyProxy, chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_cache, "PIECE", 1000)
    digest = bucket.open().publish(chat).digest
    registry = bucket.open()
    proxy.after = _broken_from(3)
    with pytest.raises(Unavailable):
        registry.blob_path(digest)
    proxy.after = lambda request: None
    proxy.ranges.clear()
    assert registry.blob_path(digest).read_bytes() == chat.read_bytes()
    assert proxy.ranges[0] == "bytes=2000-2999", "what had come does not come again"


def _broken_from(piece: int) -> Hook:
    """Every answer with a piece of a file from the given one on breaks in the middle."""
    seen = 0

    def hook(request: str) -> None:
        nonlocal seen
        seen += request.startswith("GET") and "blobs" in request
        if seen >= piece:
            raise Cut

    return hook


def test_a_half_that_was_spoilt_meanwhile_is_fetched_anew(
    bucket: Bucket, proxy: FaultyProxy, tmp_path: Path, chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_cache, "PIECE", 1000)
    digest = bucket.open().publish(chat).digest
    registry = Registry(bucket.root, cache=BlobCache(tmp_path / "own"))
    proxy.after = _broken_from(3)
    with pytest.raises(Unavailable):
        registry.blob_path(digest)
    proxy.after = lambda request: None
    half = tmp_path / "own" / "partial" / digest
    half.write_bytes(b"\0" * half.stat().st_size)
    assert registry.blob_path(digest).read_bytes() == chat.read_bytes()


# refusals


def test_forbidden_is_said_as_that_and_a_registry_that_only_cannot_be_written_is_read(
    bucket: Bucket, proxy: FaultyProxy, chat: Path, chat2: Path
) -> None:
    registry = bucket.open()
    registry.publish(chat)
    denied = always(Refuse(403, "AccessDenied"))
    proxy.before = lambda request: denied(request) if request.startswith(("PUT", "POST")) else None
    changes: list[Callable[[], object]] = [
        lambda: registry.publish(chat2),
        lambda: registry.delete("chat"),
    ]
    for change in changes:
        with pytest.raises(StorageUnwritable, match=r"may not write there \(403 AccessDenied\)"):
            change()
    assert registry.reload().generation == 1
    proxy.before = denied
    with pytest.raises(Unavailable, match=r"may not read and list there \(403") as told:
        bucket.open()
    assert told.value.code == "registry_forbidden"
    assert len(blobs(bucket)) == 1


def test_without_credentials_the_message_names_the_variables(
    bucket: Bucket, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", proxy.url)  # where the machine's own would come from
    proxy.before = always(Refuse(404, "NoSuchThing"))
    with pytest.raises(Unavailable, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") as told:
        bucket.open()
    assert told.value.code == "registry_credentials"


def test_a_bucket_that_is_not_there_is_no_empty_registry(s3: S3Server, tmp_path: Path, chat: Path) -> None:
    with pytest.raises(ConfigError, match="s3://no-such-bucket/x: there is no such bucket"):
        Registry("s3://no-such-bucket/x", create=True, cache=BlobCache(tmp_path / "cache"))


@pytest.mark.parametrize("fault", [Refuse(403, "AccessDenied"), Refuse(500, "InternalError"), Drop()])
def test_no_secret_is_in_a_message_or_in_the_log(
    bucket: Bucket, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    proxy.before = always(fault)
    with caplog.at_level(logging.DEBUG), pytest.raises(BrainstacksError) as told:
        bucket.open()
    assert told.value.__cause__ is None
    assert told.value.__suppress_context__, "a traceback would show what the library said"
    for text in (told.value.message, caplog.text):
        assert ACCESS["AWS_SECRET_ACCESS_KEY"] not in text
        assert "Signature" not in text


def test_an_endpoint_that_nobody_listens_at(
    bucket: Bucket, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, {**ACCESS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    with pytest.raises(Unavailable, match="look at the network and the endpoint"):
        bucket.open()
