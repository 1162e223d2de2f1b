"""The registry after damage: what is damaged is refused, and the rest serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainstacks.errors import Conflict, CorruptBlob
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.verify import verify
from tests.stacks.files import write_stack
from tests.stacks.places import Place, lose, spoil


@pytest.mark.parametrize("position", [0, 9, 500, -1])
def test_a_flipped_byte_is_refused_and_the_rest_serves(
    placed: Registry, place: Place, tmp_path: Path, chat: Path, position: int
) -> None:
    spoilt = placed.publish(chat).digest
    sound = placed.publish(write_stack(tmp_path / "code", "code")).digest
    spoil(place, spoilt, position)
    restarted = place.open()
    with pytest.raises(CorruptBlob, match="do not match their digest"):
        restarted.blob_path(spoilt)
    assert restarted.blob_path(sound).exists()
    (problem,) = verify(restarted)
    assert (problem.name, problem.version, problem.digest) == ("chat", 1, spoilt)


def test_a_missing_blob_is_refused(placed: Registry, place: Place, chat: Path) -> None:
    digest = placed.publish(chat).digest
    lose(place, digest)
    with pytest.raises(CorruptBlob, match="cannot be read") as caught:
        place.open().blob_path(digest)
    assert "registry/" not in caught.value.message
    assert len(verify(placed)) == 1


def test_verify_compares_the_manifest_with_the_files(placed: Registry, place: Place, chat: Path) -> None:
    placed.publish(chat)
    text = place.content()["manifest.json"]
    place.write("manifest.json", text.replace(b'"rank": 2', b'"rank": 3'))
    (problem,) = verify(placed)
    assert "the manifest lists" in problem.message


DAMAGED = [b"", b"{}", b"[]", b'{"format_version": 0}', b"\xff", b"[" * 100_000]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_manifest_is_refused_and_the_last_one_stays(
    placed: Registry, place: Place, chat: Path, content: bytes
) -> None:
    placed.publish(chat)
    place.write("manifest.json", content)
    with pytest.raises(CorruptBlob, match="manifest is damaged"):
        place.open()
    with pytest.raises(CorruptBlob):
        placed.reload()
    assert placed.generation == 1


def test_a_manifest_of_a_later_format_is_called_that_and_not_damaged(
    placed: Registry, place: Place, chat: Path
) -> None:
    placed.publish(chat)
    place.write("manifest.json", b'{"format_version": 2, "what": "nobody knows yet"}')
    with pytest.raises(CorruptBlob, match="format version 2, and this program reads 1") as refused:
        place.open()
    assert refused.value.code == "newer_format"
    assert "damaged" not in refused.value.message


def test_a_change_by_another_process_is_told(place: Place, chat: Path, chat2: Path) -> None:
    mine, other = place.open(create=True), place.open()
    assert not mine.changed()
    mine.publish(chat)
    assert not mine.changed(), "its own change is none"
    assert other.changed()
    other.reload()
    other.publish(chat2)
    assert (mine.changed(), other.changed()) == (True, False)


@pytest.mark.parametrize("domain", ["chat", "new"])
def test_of_two_publications_that_overlap_one_wins_whoever_is_read_first(
    placed: Registry, chat: Path, tmp_path: Path, domain: str
) -> None:
    """What counts is when they began, not when their files had arrived."""
    placed.publish(chat)
    before = placed.stored()
    files = [write_stack(tmp_path / f"{domain}-{seed}", domain, seed) for seed in (5, 6)]
    won = placed.publish(files[0], before=before)
    with pytest.raises(Conflict, match=f"another writer changed '{domain}'"):
        placed.publish(files[1], before=before)
    assert not placed.publish(files[0], before=before).created, "the same bytes are no conflict"
    assert placed.stored().domain(domain).current.digest == won.digest
    assert placed.publish(files[1], before=placed.stored()).created
