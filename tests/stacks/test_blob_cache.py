"""Files of registries elsewhere, on this machine: within the cap, whole, shared; spoilt ones come again."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from brainstacks.errors import ConfigError, CorruptBlob, InvalidArtifact, StorageFull, StorageUnwritable
from brainstacks.stacks import blob_cache
from brainstacks.stacks.blob_cache import BlobCache

FILES = [bytes([number]) * 1000 for number in range(5)]
DIGESTS = [hashlib.sha256(content).hexdigest() for content in FILES]


class Memory:
    """A source that counts what it is asked for; `content` is None where there is no such file."""

    def __init__(self, content: bytes | None, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.content = content
        self.asked: list[tuple[int, int]] = []
        self._meanwhile = meanwhile

    def size(self) -> int | None:
        return None if self.content is None else len(self.content)

    def read(self, start: int, stop: int) -> memoryview:
        self.asked.append((start, stop))
        self._meanwhile()
        return memoryview((self.content or b"")[start:stop])


def kept(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "blobs" / "sha256").glob("*"))


def fetch(cache: BlobCache, number: int) -> Path:
    return cache.fetch(DIGESTS[number], Memory(FILES[number]))


def test_the_least_recently_used_go_when_the_cap_is_reached(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, most_bytes=3000)
    for number in range(3):
        age(fetch(cache, number), 100 - number)
    assert cache.get(DIGESTS[0]) is not None, "used just now"
    fetch(cache, 3)
    assert kept(tmp_path) == sorted([DIGESTS[0], DIGESTS[2], DIGESTS[3]])
    assert BlobCache(tmp_path, 3000).get(DIGESTS[2]), "another process sees the same"
    cache.put([FILES[4]], DIGESTS[4])
    assert kept(tmp_path) == sorted([DIGESTS[2], DIGESTS[3], DIGESTS[4]])


def age(path: Path, seconds: int) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_file_that_is_mapped_may_go_and_stays_readable(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, most_bytes=1500)
    with fetch(cache, 0).open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        fetch(cache, 1)
        assert kept(tmp_path) == [DIGESTS[1]]
        assert mapped[:] == FILES[0]


def test_a_file_that_is_larger_than_the_cap_is_refused_and_takes_nothings_place(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, most_bytes=1500)
    fetch(cache, 0)
    large = b"y" * 1501
    calls: list[Callable[[], object]] = [
        lambda: cache.fetch(hashlib.sha256(large).hexdigest(), Memory(large)),
        lambda: cache.put([large], hashlib.sha256(large).hexdigest()),
    ]
    for call in calls:
        with pytest.raises(StorageFull, match=r"1501 bytes .* is given 1500; .*--registry-cache-bytes"):
            call()
    assert kept(tmp_path) == [DIGESTS[0]]


def test_what_a_killed_download_left_goes_as_other_files_do_and_one_that_is_going_on_stays(
    tmp_path: Path,
) -> None:
    cache = BlobCache(tmp_path, most_bytes=2500)
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / DIGESTS[4]).write_bytes(b"z" * 900)
    age(tmp_path / "partial" / DIGESTS[4], 1000)
    fetch(cache, 0)
    cache.fetch(DIGESTS[1], Memory(FILES[1], meanwhile=lambda: fetch(cache, 2)))
    assert list((tmp_path / "partial").iterdir()) == []
    assert DIGESTS[1] in kept(tmp_path)


def test_two_that_want_one_file_fetch_it_once(tmp_path: Path) -> None:
    waiting = threading.Event()
    source = Memory(FILES[0], meanwhile=waiting.wait)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(BlobCache(tmp_path).fetch(DIGESTS[0], source)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    waiting.set()
    for thread in threads:
        thread.join()
    assert source.asked == [(0, 1000)]
    assert [path.read_bytes() for path in found] == [FILES[0]] * 2


def test_a_damaged_file_is_noticed_and_fetched_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = BlobCache(tmp_path)
    path = fetch(cache, 0)
    path.chmod(0o644)
    path.write_bytes(FILES[1])
    assert cache.get(DIGESTS[0]) is None
    assert "is damaged in the registry's cache" in caplog.text
    assert fetch(cache, 0).read_bytes() == FILES[0]
    assert BlobCache(tmp_path).get(DIGESTS[0]) == path


def test_anew_brings_what_is_stored_whatever_is_here(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    fetch(cache, 0)
    with pytest.raises(CorruptBlob, match="do not match their digest"):
        cache.fetch(DIGESTS[0], Memory(FILES[1]), anew=True)
    with pytest.raises(CorruptBlob, match="there are none"):
        cache.fetch(DIGESTS[0], Memory(None), anew=True)
    assert list((tmp_path / "partial").iterdir()) == []
    assert cache.get(DIGESTS[0]) is not None, "what was good here stays"


def test_only_a_digest_becomes_a_path(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    calls: list[Callable[[], object]] = [
        lambda: cache.get("../x"),
        lambda: cache.put([b""], "../x"),
        lambda: cache.drop("../x"),
    ]
    for call in calls:
        with pytest.raises(InvalidArtifact, match="is no digest"):
            call()


@pytest.mark.parametrize(("why", "kind"), [(errno.ENOSPC, StorageFull), (errno.EACCES, StorageUnwritable)])
def test_a_cache_that_cannot_be_written_says_so_and_a_manifest_does_without(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    why: int,
    kind: type[Exception],
) -> None:
    cache = BlobCache(tmp_path)

    def failing(*_: object) -> None:
        raise OSError(why, os.strerror(why))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(kind, match="the registry's cache"):
        fetch(cache, 0)
    with pytest.raises(kind, match="the registry's cache"):
        cache.put([FILES[0]], DIGESTS[0])
    cache.keep_manifest("name", b"{}")
    assert "manifest is not kept" in caplog.text
    assert cache.manifest("name") is None
    assert kept(tmp_path) == []


def test_a_manifest_is_kept_by_name(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    assert cache.manifest("one") is None
    for content in (b"1", b"1", b"2"):
        cache.keep_manifest("one", content)
    assert (BlobCache(tmp_path).manifest("one"), cache.manifest("two")) == (b"2", None)


def test_the_environment_and_options_say_where_and_how_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("BRAINSTACKS_REGISTRY_CACHE", raising=False)
    path = fetch(BlobCache.of_user(), 0)
    assert path.parents[2] == tmp_path / "xdg" / "brainstacks" / "registry"
    monkeypatch.setenv("BRAINSTACKS_REGISTRY_CACHE", str(tmp_path / "said"))
    monkeypatch.setenv("BRAINSTACKS_REGISTRY_CACHE_BYTES", "999")
    with pytest.raises(StorageFull, match="is given 999"):
        fetch(BlobCache.of_user(), 1)
    assert fetch(BlobCache.of_user(most_bytes=1000), 1).parents[2] == tmp_path / "said"
    assert fetch(BlobCache.of_user(tmp_path / "given", 1000), 1).parents[2] == tmp_path / "given"
    monkeypatch.setenv("BRAINSTACKS_REGISTRY_CACHE_BYTES", "10 GB")
    with pytest.raises(ConfigError, match="'10 GB'; it is a number of bytes"):
        BlobCache.of_user()


def test_a_download_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_cache, "PIECE", 400)
    source = Memory(FILES[0])
    BlobCache(tmp_path).fetch(DIGESTS[0], source)
    assert source.asked == [(0, 400), (400, 800), (800, 1000)]
