"""A registry of random stacks: the work of serving depends on shapes, not on what was learnt."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from brainstacks.base_identity import BaseIdentity
from brainstacks.config import PROJECTIONS, StackConfig
from brainstacks.stacks.artifact import StackMetadata, stack_shapes
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import save_stack

B_STD = 1e-3
"""Large enough to change the text, small enough to keep activations in the base's range."""


def save_random_stack(path: Path, base: BaseIdentity, domain: str, **shape: Any) -> None:
    """Write a stack with random weights; equal arguments give equal bytes. `shape`: as for `random_stack`."""
    save_stack(path, *random_stack(base, domain, **shape))


def random_stack(
    base: BaseIdentity,
    domain: str,
    *,
    rank: int = 16,
    experts: int = 4,
    top_k: int = 2,
    rounds: int = 1,
    projections: tuple[str, ...] = PROJECTIONS,
    dtype: torch.dtype = torch.bfloat16,
    b_std: float = B_STD,
    seed: int = 0,
) -> tuple[StackMetadata, dict[str, torch.Tensor]]:
    """A stack with random weights.

    A is uniform in +-1/sqrt(d_in), as an untrained one, the gate normal with deviation 0.02. B, which is
    zero before training, is normal with deviation `b_std`, so that every stack changes the output.
    """
    generator = torch.Generator().manual_seed(seed)
    metadata = StackMetadata(
        domain=domain,
        rounds=rounds,
        config=StackConfig(
            rank=rank, experts=experts, top_k=top_k, projections=projections, layers=base.layers
        ),
        dims={projection: base.dims[projection] for projection in projections},
        base=base.ref,
        seed=seed,
        description="random weights, for benchmarks",
    )
    return metadata, {
        name: _random(name, shape, b_std, generator).to(dtype) for name, shape in stack_shapes(metadata)
    }


def publish_random_stacks(
    registry: Registry, base: BaseIdentity, count: int, *, seed: int = 0, alike: bool = False, **shape: Any
) -> tuple[str, ...]:
    """Publish `count` random stacks.

    Args:
        alike: all have the weights of the first: large ones are made in a fraction of the time.
        shape: as for `random_stack`.

    Returns:
        the domains' names, in the registry's order.
    """
    names = tuple(f"random-{i}" for i in range(count))
    with tempfile.TemporaryDirectory() as scratch:
        for i, name in enumerate(names):
            file = Path(scratch) / f"{name}.safetensors"
            if i == 0 or not alike:
                metadata, tensors = random_stack(base, name, seed=seed + i, **shape)
            save_stack(file, replace(metadata, domain=name), tensors)
            registry.publish(file)
            file.unlink()
    return names


def _random(name: str, shape: tuple[int, int], b_std: float, generator: torch.Generator) -> torch.Tensor:
    if name.endswith(".A"):
        bound = float(shape[1] ** -0.5)
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    deviation = b_std if name.endswith(".B") else 0.02
    return torch.randn(shape, generator=generator) * deviation
