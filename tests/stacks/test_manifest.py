"""A manifest is refused or means what it says, and its histories never lose the version that serves."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainstacks.errors import (
    CorruptBlob,
)
from brainstacks.stacks.manifest import History, Manifest, StackVersion, Version

VERSIONS = tuple(
    StackVersion(number, str(number) * 64, 9, 0, rounds=1, rank=2, experts=2) for number in (1, 2)
)
MANIFEST = Manifest(
    generation=7,
    domains={"chat": History(2, 2, VERSIONS), "code": History(1, 3, VERSIONS[:1])},
    router=History(1, 1, (Version(1, "a" * 64, 9, 0),)),
    retired={"law": 4},
)


@settings(max_examples=300, deadline=None)
@given(
    path=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    value=st.sampled_from([None, -1, 0, 9, "../x", []]),
)
def test_an_edited_manifest_is_refused_or_means_what_it_says(path: list[int], value: Any) -> None:
    document = json.loads(MANIFEST.to_bytes())
    place: Any = document
    for step in path[:-1]:
        children = list(place.values()) if isinstance(place, dict) else place
        following = [child for child in children if isinstance(child, dict | list) and child]
        if not following:
            break
        place = following[step % len(following)]
    place[list(place)[path[-1] % len(place)] if isinstance(place, dict) else path[-1] % len(place)] = value
    try:
        manifest = Manifest.from_bytes(json.dumps(document).encode())
    except CorruptBlob:
        return
    assert json.loads(manifest.to_bytes()) == document


@given(st.integers(0, 4), st.integers(1, 3))
def test_pruning_keeps_the_newest_and_what_serves(keep: int, active: int) -> None:
    versions = tuple(Version(number, str(number) * 64, 9, 0) for number in (1, 2, 3))
    pruned = History(active, 5, versions).pruned(keep)
    assert pruned.current.version == active
    assert {version.version for version in pruned.versions} == {active, *[1, 2, 3][max(0, 3 - keep) :]}
    assert pruned.last_version == 5


def test_a_name_that_comes_back_goes_on_counting() -> None:
    manifest = MANIFEST.without_domain("code")
    assert dict(manifest.retired) == {"law": 4, "code": 3}
    assert [manifest.next_version(name) for name in ("chat", "code", "law", "new")] == [3, 4, 5, 1]
    back = manifest.with_domain("code", History(4, 4, (dataclasses.replace(VERSIONS[0], version=4),)))
    assert (dict(back.retired), list(back.domains)) == ({"law": 4}, ["chat", "code"])


def test_what_serves_is_told_by_its_digests() -> None:
    assert MANIFEST.serving == ({"chat": "2" * 64, "code": "1" * 64}, "a" * 64)
    assert Manifest().serving == ({}, None)


def test_referenced_are_the_digests_of_all_versions() -> None:
    assert MANIFEST.referenced() == {"1" * 64, "2" * 64, "a" * 64}
    assert len(MANIFEST.versions()) == 4


@pytest.mark.parametrize(
    "changes", [{"active": 3}, {"last_version": 1}, {"versions": []}, {"versions": [{}]}, {"extra": 1}]
)
def test_a_history_that_contradicts_itself_is_refused(changes: dict[str, Any]) -> None:
    document = json.loads(MANIFEST.to_bytes())
    document["domains"]["chat"] |= changes
    with pytest.raises(CorruptBlob, match="manifest is damaged"):
        Manifest.from_bytes(json.dumps(document).encode())
