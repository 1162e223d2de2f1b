"""What is compared and set on Google's store and on Azure's, as the client sends it to a stand-in of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from brainstacks.errors import ConfigError
from brainstacks.stacks import bucket_url, object_store
from brainstacks.stacks.blob_cache import BlobCache
from brainstacks.stacks.bucket import Bucket
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.store import Superseded
from brainstacks.stacks.verify import verify
from tests.stacks.fake_cloud import FakeCloud, serving


@pytest.fixture(params=["gs", "az"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCloud]:
    monkeypatch.setattr(bucket_url, "RETRIES", 0)
    made = FakeCloud(request.param)
    with serving(made) as url:
        monkeypatch.setenv("GOOGLE_BASE_URL", url)
        monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "token")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", url)
        monkeypatch.setenv("AZURE_SKIP_SIGNATURE", "true")
        yield made


def conditions(cloud: FakeCloud, key: str) -> list[dict[str, str]]:
    return [sent for request, sent in cloud.asked if request.startswith("PUT") and request.endswith(key)]


def test_a_manifest_is_created_once_and_replaced_only_by_who_has_seen_it(cloud: FakeCloud) -> None:
    bucket = Bucket.open(f"{cloud.scheme}://bucket/prefix")
    first = bucket.replace("manifest.json", b"1", None)
    with pytest.raises(Superseded):
        bucket.replace("manifest.json", b"late", None)
    second = bucket.replace("manifest.json", b"2", first)
    with pytest.raises(Superseded):
        bucket.replace("manifest.json", b"late", first)
    found = bucket.get("manifest.json")
    assert found is not None
    assert (found.content, found.tag) == (b"2", second)
    assert bucket.tag("manifest.json") == second
    assert bucket.list()["manifest.json"].size == 1
    sent = conditions(cloud, "manifest.json")
    if cloud.scheme == "gs":
        assert sent == [{"x-goog-if-generation-match": n} for n in ("0", "0", first, first)]
    else:
        none, seen = {"if-none-match": "*"}, {"if-match": first}
        assert sent == [none, none, seen, seen]


def test_a_registry_there_is_published_to_followed_and_pruned(
    cloud: FakeCloud, tmp_path: Path, chat: Path, chat2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{cloud.scheme}://bucket/prefix"
    mine = Registry(url, cache=BlobCache(tmp_path / "mine"))
    other = Registry(url, cache=BlobCache(tmp_path / "other"))
    mine.publish(chat)
    assert not mine.changed(), "its own change is none"
    assert other.changed()
    other.reload()
    other.publish(chat2)
    assert mine.reload().domain("chat").active == 2
    assert verify(mine) == []
    monkeypatch.setattr(object_store, "UNDER_WAY", -object_store.UNDER_WAY)  # an hour later
    assert mine.prune(keep=0).blobs == 1
    assert conditions(cloud, mine.snapshot().domain("chat").current.digest) == [{}]


def test_a_store_that_names_no_version_of_its_objects_is_refused() -> None:
    memory = MemoryStore()
    with pytest.raises(ConfigError, match="no generation, so nothing can be compared and set"):
        Bucket("gs://bucket/", memory, memory, versioned=True).replace("manifest.json", b"1", None)


def test_the_librarys_own_store_in_memory_compares_and_sets_alike() -> None:
    memory = MemoryStore()
    bucket = Bucket("memory", memory, memory)
    tag = bucket.replace("manifest.json", b"1", None)
    with pytest.raises(Superseded):
        bucket.replace("manifest.json", b"2", None)
    bucket.replace("manifest.json", b"2", tag)
    with pytest.raises(Superseded):
        bucket.replace("manifest.json", b"3", tag)
