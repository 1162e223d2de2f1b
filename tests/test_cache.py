"""What is cached is made once; what is damaged is made anew; a cache that cannot be written stops nobody."""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from brainstacks.cache import Entry, cache_directory, cached
from brainstacks.errors import UnsupportedModel

KEY = {"file": "abc", "form": "test"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "brainstacks" / "bases"


class Maker:
    """Counts how often it makes the files `a` and `b`."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, directory: Path) -> Mapping[str, str]:
        self.made += 1
        (directory / "a").write_text("first")
        (directory / "b").write_text("second")
        return {"fact": "kept"}


def get(maker: Maker, **key: str) -> Entry:
    entry = cached("a test", KEY | key, maker)
    assert (entry.directory / "a").read_text() == "first"
    assert (entry.directory / "b").read_text() == "second"
    assert entry.facts == {"fact": "kept"}
    return entry


def test_an_entry_is_made_once_for_each_key(cache: Path) -> None:
    maker = Maker()
    first = get(maker)
    assert get(maker) == first
    assert maker.made == 1
    assert first.directory.is_relative_to(cache)
    assert get(maker, form="other").directory != first.directory
    assert maker.made == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "a").write_text("f1rst"),
        lambda entry: (entry / "b").unlink(),
        lambda entry: (entry / "more").write_text(""),
        lambda entry: (entry.parent / "entry.json").write_text("{"),
        lambda entry: (entry.parent / "entry.json").write_text("[]"),
        lambda entry: (entry.parent / "entry.json").write_text('{"files": [], "facts": {}}'),
        lambda entry: (entry.parent / "entry.json").unlink(),
    ],
)
def test_a_damaged_entry_is_named_and_made_anew(damage: object, caplog: pytest.LogCaptureFixture) -> None:
    maker = Maker()
    damage(get(maker).directory)  # type: ignore[operator]
    get(maker)
    assert maker.made == 2
    assert "a test is damaged in the cache" in caplog.text
    caplog.clear()
    get(maker)
    assert maker.made == 2
    assert not caplog.text


def test_those_who_ask_at_once_wait_for_the_one_who_makes_it() -> None:
    at_once, maker = threading.Barrier(3), Maker()
    entries: list[Entry] = []

    def ask() -> None:
        at_once.wait()
        entries.append(cached("a test", KEY, maker))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert maker.made == 1
    assert len(entries) == 3
    assert len({entry.directory for entry in entries}) == 1


def test_what_a_killed_process_left_is_removed(cache: Path) -> None:
    target = get(Maker()).directory.parent
    left = target.with_name(f".{target.name}.tmp-{'0' * 32}")
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    another = cache / f".another.tmp-{'0' * 32}"  # its process may be alive
    another.mkdir()
    (target / "entry.json").unlink()
    get(Maker())
    assert not left.exists()
    assert another.exists()


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError("read-only")]
)
def test_a_full_or_read_only_cache_stops_nobody(
    cache: Path, error: OSError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    maker = Maker()

    def fails_in_the_cache(directory: Path) -> Mapping[str, str]:
        if directory.is_relative_to(cache):
            raise error
        return maker(directory)

    entry = cached("a test", KEY, fails_in_the_cache)
    assert (entry.directory / "a").read_text() == "first"
    assert "a test cannot be kept in" in caplog.text
    assert "XDG_CACHE_HOME" in caplog.text
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []


def test_a_cache_that_cannot_even_be_made_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    maker = Maker()
    get(maker)
    assert "a test cannot be kept in" in caplog.text
    get(maker)
    assert maker.made == 2


def test_a_base_that_is_refused_leaves_nothing(cache: Path) -> None:
    def refuse(directory: Path) -> Mapping[str, str]:
        raise UnsupportedModel("damaged")

    with pytest.raises(UnsupportedModel, match="damaged"):
        cached("a test", KEY, refuse)
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_directory() == tmp_path / "cache" / "brainstacks"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "brainstacks"
