"""Random stacks are the same at every run, and different from one another unless that is asked for."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.instruments.random_stacks import publish_random_stacks
from brainstacks.base_model import BaseModel
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack


def published(directory: Path, base: BaseModel, *, alike: bool) -> dict[str, dict[str, torch.Tensor]]:
    """Digest -> weights."""
    registry = Registry(directory, create=True)
    publish_random_stacks(registry, base.identity, 3, alike=alike, rank=2)
    digests = [history.current.digest for history in registry.snapshot().domains.values()]
    return {digest: dict(load_stack(registry.blob_path(digest)).tensors) for digest in digests}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_stacks_have_other_weights_unless_they_are_to_be_alike(tmp_path: Path, tiny_base: BaseModel) -> None:
    first, second, _ = published(tmp_path / "different", tiny_base, alike=False).values()
    assert not same(first, second)
    alike = published(tmp_path / "alike", tiny_base, alike=True)
    assert len(alike) == 3, "three versions, whatever they weigh"
    assert all(same(first, weights) for weights in alike.values())


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, tiny_base: BaseModel) -> None:
    once, again = (published(tmp_path / name, tiny_base, alike=False) for name in ("once", "again"))
    assert set(once) == set(again)
