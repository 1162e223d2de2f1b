"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from brainstacks.base_model import BaseModel
from brainstacks.config import Backend, EngineConfig
from brainstacks.engine.serving.serving import Serving
from brainstacks.stacks.registry import Registry
from tests.engine import driving
from tests.engine.async_driving import Running
from tests.engine.driving import Served, serve
from tests.engine.serving_domains import Publish
from tests.tiny import publish_stack, random_stack

ON_A_CPU: list[Backend] = ["torch", "cpu"]
"""`cuda` computes there too, interpreted, a thousand times slower: `test_cuda_properties.py`."""


@pytest.fixture(scope="module", params=ON_A_CPU)
def each_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Once with every backend that computes on a CPU, for the engines of `driving.serve`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driving, "backend", request.param)
        yield


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    made = Running(tmp_path)
    yield made
    await made.engine.close()


@pytest.fixture
def served(tmp_path: Path) -> Served:
    """An engine over a tiny base with three domains."""
    return serve(tmp_path)


@pytest.fixture
def publish(tiny_base: BaseModel, registry: Registry, tmp_path: Path) -> Publish:
    """Publishes a random stack of a domain; chat, code and math are published already."""

    def run(domain: str, seed: int, rounds: int = 1) -> None:
        stack = random_stack(tiny_base.identity.dims, seed, rounds)
        publish_stack(registry, tiny_base.identity, domain, stack, tmp_path)

    for seed, domain in enumerate(("chat", "code", "math")):
        run(domain, seed)
    return run


@pytest.fixture
def serving(publish: Publish, registry: Registry, tiny_base: BaseModel) -> Serving:
    """Of those three domains, with room for all."""
    return Serving(tiny_base, registry, EngineConfig())
