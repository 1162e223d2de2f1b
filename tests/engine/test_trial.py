"""What is uploaded is tried before it is stored: what cannot compute is refused, and what serves goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from brainstacks.engine.request import CompositionRequest
from brainstacks.engine.trial import CANARY
from brainstacks.errors import EngineFailure, InvalidArtifact, Unavailable
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.routing.router import Router
from brainstacks.stacks.artifact import read_stack_metadata
from brainstacks.stacks.router_artifact import read_router_metadata
from brainstacks.stacks.tensors import load_router_tensors, save_router
from tests.engine.async_driving import Running, collect, expected, stream
from tests.engine.driving import fixed, prompt_of, request
from tests.stacks.files import tree
from tests.tiny import plain_greedy, random_stack, stack_config, tiny_model, write_router

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_backend")]

ROUTED = CompositionRequest("routed")
MANY = stack_config(rank=16, experts=8, alpha=16384.0)


def absurd(running: Running, size: float = 16384.0) -> StackTensors:
    """As large as the bounds allow, in every place: many rounds of it leave float32."""
    stack = random_stack(running.served.base.identity.dims, 7, rounds=3, config=MANY)
    return StackTensors(MANY, 3, {name: torch.full_like(t, size) for name, t in stack.tensors.items()})


def router_file(running: Running, change: Callable[[dict[str, Any]], object]) -> Path:
    """The registry's router with changed tensors."""
    served = running.served
    plain = write_router(running.directory / "plain.safetensors", served.registry, served.base.identity)
    tensors = {name: tensor.clone() for name, tensor in load_router_tensors(plain).items()}
    change(tensors)
    path = running.directory / "changed.safetensors"
    save_router(path, read_router_metadata(plain), tensors)
    return path


def huge(tensors: dict[str, Any]) -> None:
    """Every tensor is finite and within its bound, and a context is infinite less infinite."""
    for name in tensors:
        tensors[name] = torch.full_like(tensors[name], 16384.0)
    tensors["token_ln.weight"] = torch.full_like(tensors["token_ln.weight"], 16384.0)
    tensors["out.weight"][:, ::2] *= -1


async def test_a_stack_whose_logits_are_not_finite_is_refused_and_leaves_nothing(running: Running) -> None:
    engine, registry = running.engine, running.served.registry
    one = request("before", prompt_of(5), fixed(math=1.0))
    before, files = await collect(stream(engine, one)), set(tree(running.directory / "registry"))
    poisoned = poison(running)
    with pytest.raises(InvalidArtifact, match="tried alone at weight 1.0"):
        await engine.stacks.publish("math", poisoned)
    assert (registry.generation, set(tree(running.directory / "registry"))) == (3 + 1, files | LOCKED(files))
    assert engine.stacks.domain("math").version == 1
    assert await collect(stream(engine, request("after", prompt_of(5), fixed(math=1.0)))) == before
    assert engine.status.readiness().problems == ()
    assert await running.idle()
