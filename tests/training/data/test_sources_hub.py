"""The hub gives what a recipe names and downloads no more, and what it refuses is named."""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from brainstacks.errors import ConfigError, StorageFull
from training.data.sources import load_source
from training.recipe.recipe import SourceRecipe

SPLITS = {
    "train": [{"question": f"How many are {i}?", "answer": f"Count.\n#### {i}"} for i in range(4)],
    "test": [{"question": "How many are none?", "answer": "Count.\n#### 0"}],
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str]]:
    """`load_dataset` gives `SPLITS` as data sets in memory; the list gets what it was asked for.

    A stream says "downloaded" after its last row.
    """
    datasets = importlib.import_module("datasets")
    asked: list[tuple[str, str | None, str]] = []

    def stream(split: str) -> Iterator[dict[str, str]]:
        yield from SPLITS[split]
        asked.append(("downloaded", None, split))

    def load_dataset(
        name: str, subset: str | None, *, split: str, revision: str | None, streaming: bool
    ) -> Any:
        asked.append((name if revision is None else f"{name} of {revision}", subset, split))
        if split.partition("[")[0] not in SPLITS:
            raise ValueError(f"Unknown split {split!r}")
        if streaming:
            return datasets.IterableDataset.from_generator(stream, gen_kwargs={"split": split})
        return datasets.Dataset.from_list(SPLITS[split.partition("[")[0]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def gsm8k(**changes: Any) -> SourceRecipe:
    return SourceRecipe(**{"source": "hub:openai/gsm8k", "format": "gsm8k", "subset": "main", **changes})


def test_the_hub_gives_the_splits_that_the_recipe_names(hub: list[tuple[str, str | None, str]]) -> None:
    loaded = load_source(gsm8k(split="train", validation_split="test", limit=3))
    assert hub == [("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")]
    assert [r.response for r in loaded.records] == [f"Count.\nThe answer is {i}." for i in range(3)]
    assert loaded.validation is not None
    assert [r.messages[0].content for r in loaded.validation] == ["How many are none?"]
    names = [source.name for source in loaded.sources]
    assert names == ["openai/gsm8k/main/train", "openai/gsm8k/main/test"]
    assert [source.examples for source in loaded.sources] == [3, 1]


def test_a_revision_is_asked_for_and_named_and_changes_no_record(
    hub: list[tuple[str, str | None, str]],
) -> None:
    pinned = load_source(gsm8k(revision="v1.0", validation_split="test"))
    assert hub == [("openai/gsm8k of v1.0", "main", "train"), ("openai/gsm8k of v1.0", "main", "test")]
    assert [s.name for s in pinned.sources] == ["openai/gsm8k@v1.0/main/train", "openai/gsm8k@v1.0/main/test"]
    assert pinned.records == load_source(gsm8k()).records


def test_the_digest_is_of_the_rows_that_were_read(hub: list[tuple[str, str | None, str]]) -> None:
    def digest(limit: int | None) -> str | None:
        return load_source(gsm8k(limit=limit)).sources[0].digest

    assert digest(None) == digest(4) != digest(3)
    assert len(digest(None) or "") == 64


def test_a_limit_streams_and_the_rows_after_it_are_never_downloaded(
    hub: list[tuple[str, str | None, str]],
) -> None:
    assert len(load_source(gsm8k(limit=2)).records) == 2
    assert hub == [("openai/gsm8k", "main", "train")]
    assert len(load_source(gsm8k(limit=5)).records) == 4
    assert hub[2:] == [("downloaded", None, "train")]


def test_a_stream_and_a_download_give_the_same_records(hub: list[tuple[str, str | None, str]]) -> None:
    assert load_source(gsm8k(limit=4)) == load_source(gsm8k())


def test_a_slice_of_a_split_is_downloaded_because_it_cannot_be_streamed(
    hub: list[tuple[str, str | None, str]],
) -> None:
    assert len(load_source(gsm8k(split="train[:4]", limit=3)).records) == 3
    assert hub == [("openai/gsm8k", "main", "train[:4]")]


@pytest.mark.parametrize("limit", [None, 3])
def test_the_hub_gives_only_rows_with_the_values_asked_for(
    hub: list[tuple[str, str | None, str]], limit: int | None
) -> None:
    where = {"question": "How many are 2?"}
    assert [r.response for r in load_source(gsm8k(where=where, limit=limit)).records] == [
        "Count.\nThe answer is 2."
    ]
    with pytest.raises(ConfigError, match=r"main/train has no column 'topic' .*; it has question, answer"):
        load_source(gsm8k(where={"topic": "b"}, limit=limit))


def test_without_a_validation_split_there_is_no_validation(hub: list[tuple[str, str | None, str]]) -> None:
    assert load_source(gsm8k()).validation is None
    assert hub == [("openai/gsm8k", "main", "train")]


def test_what_the_hub_refuses_is_named(hub: list[tuple[str, str | None, str]]) -> None:
    with pytest.raises(ConfigError, match=r"openai/gsm8k/main/dev cannot be loaded .*Unknown split 'dev'"):
        load_source(gsm8k(split="dev"))


def test_a_full_disk_is_no_missing_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(StorageFull, match="openai/gsm8k/main/train"):
        load_source(gsm8k())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="package datasets"):
        load_source(gsm8k())
