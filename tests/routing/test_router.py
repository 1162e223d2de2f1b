"""A router file, loaded, is the network that was saved, over the base's own features."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from brainstacks.base_model import BaseModel
from brainstacks.errors import IncompatibleArtifact
from brainstacks.routing.features import mixed_hidden_states
from brainstacks.routing.router import Router
from brainstacks.stacks.registry import Registry
from tests.tiny import publish_stack, random_stack, write_router


@pytest.fixture
def path(tiny_base: BaseModel, registry: Registry, tmp_path: Path) -> Path:
    for seed, domain in enumerate(("chat", "code")):
        publish_stack(
            registry, tiny_base.identity, domain, random_stack(tiny_base.identity.dims, seed), tmp_path
        )
    return write_router(tmp_path / "router.safetensors", registry, tiny_base.identity, sequence_length=4)


def test_probabilities_are_the_networks_over_the_first_tokens(tiny_base: BaseModel, path: Path) -> None:
    router = Router.load(path, tiny_base)
    (found,) = router.probabilities(tiny_base, [[9, 8, 7, 6, 5, 4]])
    assert tuple(found) == ("chat", "code")
    with torch.no_grad():
        features = mixed_hidden_states(tiny_base.model, torch.tensor([[9, 8, 7, 6]]))
        logits = router.network(features, torch.ones(1, 4, dtype=torch.bool))
    assert list(found.values()) == pytest.approx(logits.sigmoid()[0].tolist(), abs=1e-6)


def test_a_prompts_route_does_not_depend_on_what_is_routed_with_it(tiny_base: BaseModel, path: Path) -> None:
    router = Router.load(path, tiny_base)
    prompts = [[1, 2, 3, 4, 5], [6], [7, 8]]
    together = router.probabilities(tiny_base, prompts)
    for prompt, row in zip(prompts, together, strict=True):
        (alone,) = router.probabilities(tiny_base, [prompt])
        assert list(alone.values()) == pytest.approx(list(row.values()), abs=1e-5)


def test_a_router_of_another_base_is_refused(tiny_base: BaseModel, path: Path) -> None:
    other = dataclasses.replace(
        tiny_base, identity=dataclasses.replace(tiny_base.identity, fingerprint="0" * 64)
    )
    with pytest.raises(IncompatibleArtifact, match="fingerprint"):
        Router.load(path, other)
