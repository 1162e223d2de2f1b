"""Stacks without a signature get one: the same weights, and a router that knows them as before."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from brainstacks.base_model import BaseModel
from brainstacks.errors import ConfigError
from brainstacks.stacks.artifact import inspect_stack, read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import read_router_metadata
from brainstacks.stacks.tensors import load_stack
from tests.tiny import publish_stack, random_stack, write_records, write_router
from tests.training.curricula import digests, quiet, recipe
from training.curriculum.signing import sign
from training.data.domains import prepare


@pytest.fixture
def served(registry: Registry, tiny_base: BaseModel, tmp_path: Path) -> Registry:
    identity = tiny_base.identity
    for seed, domain in enumerate(("chat", "math")):
        publish_stack(registry, identity, domain, random_stack(identity.dims, seed), tmp_path)
    registry.publish_router(write_router(tmp_path / "router.safetensors", registry, identity))
    return registry


def router_stacks(registry: Registry) -> Mapping[str, str]:
    """Domain -> the digest that the router knows."""
    path = registry.blob_path(registry.snapshot().routers().current.digest)
    return read_router_metadata(path).stacks


def test_signed_stacks_have_the_same_weights_and_the_router_still_knows_them(
    served: Registry, tiny_directory: Path, data: Path
) -> None:
    before = served.snapshot()
    plan = recipe(tiny_directory)
    sign(plan, prepare(plan, data), served, quiet)
    after = served.snapshot()
    knows = router_stacks(served)
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


def test_a_domain_with_too_few_prompts_is_refused_before_anything_is_published(
    served: Registry, tiny_directory: Path, data: Path
) -> None:
    write_records(data / "math" / "train.jsonl", [(str(i), "yes") for i in range(8)])
    plan = recipe(tiny_directory)
    generation = served.generation
    with pytest.raises(ConfigError, match="math gets no signature: 7 different training prompts"):
        sign(plan, prepare(plan, data), served, quiet)
    assert served.generation == generation


def test_ended_before_the_router_it_makes_the_router_know_all_stacks_when_it_is_called_again(
    served: Registry, tiny_directory: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(file: Path) -> None:
        raise KeyboardInterrupt

    plan = recipe(tiny_directory)
    with monkeypatch.context() as patched:
        patched.setattr(served, "publish_router", killed)
        with pytest.raises(KeyboardInterrupt):
            sign(plan, prepare(plan, data), served, quiet)
    serving = digests(served)
    assert router_stacks(served) != serving
    sign(plan, prepare(plan, data), served, quiet)
    assert digests(served) == serving
    assert router_stacks(served) == serving


def test_a_router_does_not_come_to_know_other_weights(
    served: Registry, tiny_base: BaseModel, tiny_directory: Path, data: Path, tmp_path: Path
) -> None:
    known = router_stacks(served)
    publish_stack(served, tiny_base.identity, "math", random_stack(tiny_base.identity.dims, 7), tmp_path)
    plan = recipe(tiny_directory)
    sign(plan, prepare(plan, data), served, quiet)
    chat = served.snapshot().domain("chat").current.digest
    assert router_stacks(served) == {"chat": chat, "math": known["math"]}


def test_signatures_that_the_router_would_not_use_are_refused_and_others_are_of_its_prompt_length(
    served: Registry, tiny_base: BaseModel, tiny_directory: Path, data: Path, tmp_path: Path
) -> None:
    served.publish_router(
        write_router(tmp_path / "short.safetensors", served, tiny_base.identity, sequence_length=64)
    )
    plan = recipe(tiny_directory)
    generation = served.generation
    with pytest.raises(ConfigError, match=r"Set router\.sequence_length: 64 in the recipe"):
        sign(plan, prepare(plan, data), served, quiet)
    assert served.generation == generation
    short = dataclasses.replace(plan, router=dataclasses.replace(plan.router, sequence_length=64))
    sign(short, prepare(short, data), served, quiet)
    path = served.blob_path(served.snapshot().domain("math").current.digest)
    signature = read_stack_metadata(path).signature
    assert signature is not None
    assert signature.sequence_length == 64
