"""Data that the experiments learn in a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import write_records


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains, each with one answer to learn."""
    directory = tmp_path_factory.mktemp("data")
    for domain, answer in (("chat", "yes it is"), ("math", "it is four")):
        for split, count in (("train", 40), ("validation", 4)):
            rows = [(f"{domain} {split} {i}", f"{answer} {i % 2}") for i in range(count)]
            write_records(directory / domain / f"{split}.jsonl", rows)
    return directory
