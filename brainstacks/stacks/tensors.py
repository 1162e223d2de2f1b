"""The torch side of stack and router files: tensors in, one checked file out, and back.

Tensors are named and shaped as in `artifact.py` and `router_artifact.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save

from brainstacks.durable import replacing, storage_full, write_file
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.artifact import StackFile, StackMetadata, inspect_stack, read_stack_metadata
from brainstacks.stacks.envelope import METADATA_KEY
from brainstacks.stacks.router_artifact import RouterFile, RouterMetadata, inspect_router

File = TypeVar("File")


def save_stack(path: Path, metadata: StackMetadata, tensors: Mapping[str, torch.Tensor]) -> StackFile:
    """Write a stack file and check it as an upload is checked. `path` appears whole or not at all.

    Holds two copies of the tensors in memory meanwhile.

    Raises:
        InvalidArtifact: tensors and metadata do not make a sound stack; nothing is written.
        StorageFull: no room; nothing is written.
    """
    return _save(path, metadata.to_json(), tensors, inspect_stack)


def save_router(path: Path, metadata: RouterMetadata, tensors: Mapping[str, torch.Tensor]) -> RouterFile:
    """Write a router file and check it as an upload is checked. `path` appears whole or not at all.

    Raises:
        InvalidArtifact: tensors and metadata do not make a sound router; nothing is written.
        StorageFull: no room; nothing is written.
    """
    return _save(path, metadata.to_json(), tensors, inspect_router)


def _save(
    path: Path, document: str, tensors: Mapping[str, torch.Tensor], inspect: Callable[[Path], File]
) -> File:
    # Copies: slices of one parameter share storage, which the library refuses to write.
    copies = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in sorted(tensors.items())
    }
    content = save(copies, metadata={METADATA_KEY: document})
    with storage_full(path.name), replacing(path) as temporary:
        write_file(temporary, [content])
        file = inspect(temporary)
    return file


def load_stack(path: Path) -> StackTensors:
    """A stack file, on the CPU, memory-mapped: bytes are read when they are used, values are not checked.

    Raises:
        InvalidArtifact: the file is not a sound stack.
    """
    metadata = read_stack_metadata(path)
    return StackTensors(metadata.config, metadata.rounds, load_file(path, device="cpu"))


def load_router_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a checked router file, on the CPU, memory-mapped."""
    return load_file(path, device="cpu")
