"""Small stack and router files, sound and unsound, built byte by byte without the safetensors library."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from brainstacks.base_identity import BaseRef
from brainstacks.config import MetaRouterConfig, StackConfig
from brainstacks.stacks.artifact import StackMetadata, stack_shapes
from brainstacks.stacks.router_artifact import RouterMetadata, router_shapes

CONFIG = StackConfig(rank=2, alpha=4.0, experts=2, top_k=1, projections=("q_proj", "v_proj"), layers=2)
DIMS = {"q_proj": (4, 4), "v_proj": (4, 2)}
BASE = BaseRef("tiny", "f" * 64, "LlamaForCausalLM")

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
"""name -> (dtype, shape, bytes)"""


def container(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file with this header, whatever it says."""
    return len(header).to_bytes(8, "little") + header + data


def pack(tensors: Tensors, metadata: Mapping[str, Any] | None = None) -> bytes:
    """A sound container with these tensors, in this order."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(content)]}
        end += len(content)
    return container(json.dumps(header).encode(), b"".join(content for _, _, content in tensors.values()))


def random_tensors(shapes: Iterable[tuple[str, tuple[int, ...]]], seed: int = 0) -> Tensors:
    """float32 tensors of these shapes, standard normal."""
    random = np.random.default_rng(seed)
    return {
        name: ("F32", shape, random.standard_normal(math.prod(shape)).astype("<f4").tobytes())
        for name, shape in shapes
    }


def stack_metadata(domain: str = "chat", rounds: int = 2, **changes: Any) -> StackMetadata:
    return StackMetadata(domain=domain, rounds=rounds, config=CONFIG, dims=DIMS, base=BASE, **changes)


def stack_tensors(seed: int = 0, metadata: StackMetadata | None = None) -> Tensors:
    return random_tensors(stack_shapes(metadata or stack_metadata()), seed)


def write_stack(path: Path, domain: str = "chat", seed: int = 0, **changes: Any) -> Path:
    """Write a sound stack file; equal arguments give equal bytes."""
    metadata = stack_metadata(domain, **changes)
    path.write_bytes(pack(stack_tensors(seed, metadata), {"brainstacks": metadata.to_json()}))
    return path


def router_metadata(stacks: Mapping[str, str]) -> RouterMetadata:
    config = MetaRouterConfig(domains=tuple(stacks), token_dim=4, hidden_dim=8)
    return RouterMetadata(config=config, stacks=stacks, base=BASE)


def write_router(path: Path, stacks: Mapping[str, str], seed: int = 0) -> Path:
    """Write a sound router file over `stacks` (domain -> digest)."""
    metadata = router_metadata(stacks)
    tensors = random_tensors(router_shapes(metadata.config), seed)
    path.write_bytes(pack(tensors, {"brainstacks": metadata.to_json()}))
    return path


def flip(path: Path, position: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def tree(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [root, *root.rglob("*")]}
