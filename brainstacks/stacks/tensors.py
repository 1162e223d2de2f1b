"""The torch side of stack and router files: tensors in, one checked file out, and back.

Tensors are named and shaped as in `artifact.py` and `router_artifact.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save

from brainstacks.durable import replacing, storage_full, write_file
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.artifact import StackFile, StackMetadata, inspect_stack, read_stack_metadata
from brainstacks.stacks.envelope import METADATA_KEY, CheckedFile
from brainstacks.stacks.router_artifact import RouterFile, RouterMetadata, inspect_router
from brainstacks.stacks.signature_file import SIGNATURE

File = TypeVar("File")

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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


def load_stack(path: Path, metadata: StackMetadata | None = None) -> StackTensors:
    """A stack file, on the CPU, memory-mapped: bytes are read when they are used, values are not checked.

    Args:
        metadata: the file's, where it is known; else it is read, and the set of tensors checked.

    Raises:
        InvalidArtifact: the file is not a sound stack.
    """
    metadata = metadata or read_stack_metadata(path)
    return StackTensors(metadata.config, metadata.rounds, _weights(load_file(path, device="cpu")))


def received_stack(file: StackFile) -> StackTensors:
    """A checked stack file whose data was kept: views of these."""
    return StackTensors(file.metadata.config, file.metadata.rounds, _weights(received_tensors(file)))


def _weights(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of a stack file that are computed with, and not its signature."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(SIGNATURE)}


def load_signature(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checked stack file's routing signature, on the CPU; none where it has none."""
    return {
        name: tensor for name, tensor in load_file(path, device="cpu").items() if name.startswith(SIGNATURE)
    }


def received_tensors(file: CheckedFile[Any]) -> dict[str, torch.Tensor]:
    """The tensors of a checked file whose data was kept: views of these."""
    if file.data is None:
        raise ValueError(f"the data of {file.digest} were not kept; inspect the file with keep=True")
    return {
        name: torch.frombuffer(
            file.data, dtype=_DTYPES[info.dtype], count=math.prod(info.shape), offset=info.start
        ).view(info.shape)
        for name, info in file.header.tensors.items()
    }


def load_router_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a checked router file, on the CPU, memory-mapped."""
    return load_file(path, device="cpu")
