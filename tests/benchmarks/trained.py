"""A small registry with a router, in the place of a trained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brainstacks.base_identity import BaseIdentity
from brainstacks.stacks.registry import Registry
from tests.tiny import publish_stack, random_stack, stack_config, write_router


def trained_registry(directory: Path, base: BaseIdentity, **config: Any) -> Registry:
    """Two domains and their router, under `directory / "trained"`; the stacks have this of their shape."""
    registry = Registry(directory / "trained", create=True)
    for seed, domain in enumerate(("chat", "math")):
        publish_stack(
            registry, base, domain, random_stack(base.dims, seed, config=stack_config(**config)), directory
        )
    registry.publish_router(write_router(directory / "router.safetensors", registry, base))
    return registry
