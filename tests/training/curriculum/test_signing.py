"""Stacks without a signature get one: the same weights, and a router that knows them as before."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from brainstacks.base_model import BaseModel
from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import inspect_stack, read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import read_router_metadata
from brainstacks.stacks.tensors import load_stack
from tests.tiny import publish_stack, random_stack, write_router
from tests.training.curricula import quiet, recipe
from training.curriculum.signing import sign
from training.data.domains import prepare


@pytest.fixture
def served(registry: Registry, tiny_base: BaseModel, tmp_path: Path) -> Registry:
    identity = tiny_base.identity
    for seed, domain in enumerate(("chat", "math")):
        publish_stack(registry, identity, domain, random_stack(identity.dims, seed), tmp_path)
    registry.publish_router(write_router(tmp_path / "router.safetensors", registry, identity))
    return registry


def test_signed_stacks_have_the_same_weights_and_the_router_still_knows_them(
    served: Registry, tiny_directory: Path, data: Path
) -> None:
    before = served.snapshot()
    plan = recipe(tiny_directory)
    sign(plan, prepare(plan, data), served, quiet)
    after = served.snapshot()
    assert after.router is not None
    knows = read_router_metadata(served.blob_path(after.router.current.digest)).stacks
    for domain, history in after.domains.items():
        assert history.current.version == 2
        assert knows[domain] == history.current.digest
        old = served.blob_path(before.domain(domain).current.digest)
        new = served.blob_path(history.current.digest)
        weights = load_stack(new).tensors
        assert all(torch.equal(tensor, weights[name]) for name, tensor in load_stack(old).tensors.items())
        signed = inspect_stack(new).metadata
        assert signed.signature is not None
        assert dataclasses.replace(signed, signature=None) == read_stack_metadata(old)


def test_a_domain_without_data_is_refused_before_anything_is_published(
    served: Registry, tiny_directory: Path, data: Path
) -> None:
    plan = recipe(tiny_directory, "chat")
    generation = served.generation
    with pytest.raises(ConfigError, match="serves math, and the recipe has no data of it"):
        sign(plan, prepare(plan, data), served, quiet)
    assert served.generation == generation
