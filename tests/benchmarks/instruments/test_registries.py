"""What a benchmark serves: random stacks, the same every time, and a trained registry where it fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.instruments.random_stacks import publish_random_stacks
from benchmarks.instruments.registries import served
from brainstacks.base_model import BaseModel, load_base
from brainstacks.stacks.artifact import read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.verify import verify
from tests.benchmarks.trained import trained_registry
from tests.tiny import save_base


def test_random_stacks_are_sound_distinct_and_the_same_every_time(
    tmp_path: Path, tiny_base: BaseModel
) -> None:
    digests = []
    for directory in (tmp_path / "a", tmp_path / "b"):
        registry = Registry(directory, create=True)
        names = publish_random_stacks(registry, tiny_base.identity, 2, rank=2)
        assert tuple(registry.snapshot().domains) == names
        assert verify(registry) == []
        digests.append([history.current.digest for history in registry.snapshot().domains.values()])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 2
    assert read_stack_metadata(registry.blob_path(digests[0][0])).config.rank == 2


def test_a_trained_registry_is_copied_with_its_router(tmp_path: Path, tiny_base: BaseModel) -> None:
    source = trained_registry(tmp_path, tiny_base.identity)
    with served(tiny_base.identity, random=2, rank=2, trained=tmp_path / "trained") as stacks:
        assert stacks.trained == ("chat", "math")
        assert tuple(stacks.files) == ("chat", "math", *stacks.random)
        assert stacks.registry.snapshot().router is not None
        assert {read_stack_metadata(path).config.rank for path in stacks.files.values()} == {2}
    assert not stacks.path.exists()
    assert tuple(source.snapshot().domains) == ("chat", "math")


def test_a_registry_for_another_base_is_left_out_with_a_word(
    tmp_path: Path, tiny_base: BaseModel, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_registry(tmp_path, tiny_base.identity)
    other = load_base(save_base(tmp_path / "other", seed=1), quantization="none", device="cpu")
    with served(other.identity, random=1, rank=2, trained=tmp_path / "trained") as stacks:
        assert stacks.trained == ()
        assert tuple(stacks.files) == stacks.random
    assert "the trained registry is left out" in capsys.readouterr().out


def test_an_empty_registry_is_left_out_with_a_word(
    tmp_path: Path, tiny_base: BaseModel, capsys: pytest.CaptureFixture[str]
) -> None:
    Registry(tmp_path / "empty", create=True)
    with served(tiny_base.identity, random=1, rank=2, trained=tmp_path / "empty") as stacks:
        assert stacks.trained == ()
    assert "the trained registry is empty" in capsys.readouterr().out
