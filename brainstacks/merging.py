"""A fixed composition of one-expert stacks, added to the weights of its base: a plain checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from brainstacks.base_files import is_gguf, quiet_transformers
from brainstacks.base_identity import BaseIdentity
from brainstacks.base_model import BaseModel, in_float32, load_base
from brainstacks.config import Quantization
from brainstacks.durable import creating_directory
from brainstacks.engine.request import MAX_WEIGHT
from brainstacks.errors import ConfigError
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.routing.policy import GATE_THRESHOLD
from brainstacks.stacks.artifact import check_base, check_listed, read_stack_metadata
from brainstacks.stacks.one_expert import check_one_expert, factors
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import read_router_metadata
from brainstacks.stacks.tensors import load_stack

Composition = Sequence[tuple[StackTensors, float]]
"""Stacks of one expert, and their weights."""


def read_composition(registry: Registry, weights: Mapping[str, float], base: BaseIdentity) -> Composition:
    """The active stacks of the domains that have `weights`, as a server would apply them to a request.

    Raises:
        ConfigError: a weight is one that a server of the registry refuses, or does not apply.
        DomainNotFound, CorruptBlob: there is no such stack, or its bytes are damaged.
        IncompatibleArtifact: it is of another base.
        InvalidArtifact: it has several experts, or does not act everywhere.
    """
    manifest = registry.snapshot()
    threshold = GATE_THRESHOLD
    if manifest.router is not None:
        file = registry.blob_path(manifest.router.current.digest)
        threshold = read_router_metadata(file).config.gate_threshold
    composition = []
    for domain, weight in weights.items():
        if not threshold < abs(weight) <= MAX_WEIGHT:
            raise ConfigError(
                f"the weight of {domain!r} is {weight}; its size is at most {MAX_WEIGHT}, and above "
                f"{threshold}, up to which a server of this registry applies no stack: leave it out"
            )
        path = registry.blob_path(manifest.domain(domain).current.digest)
        metadata = read_stack_metadata(path)
        check_listed(metadata, domain)
        check_base(metadata, base.fingerprint, base.dims, base.layers)
        check_one_expert(metadata.config, f"the stack of {domain!r}")
        composition.append((load_stack(path, metadata), weight))
    return composition


def load_values(base: str | os.PathLike[str], quantization: Quantization | None = None) -> BaseModel:
    """`base` on the CPU in float32, its linears plain, so that deltas can be added to their weights.

    Args:
        quantization: whose values: those that a server of that quantisation computes with. None takes the
            weights of an unquantised checkpoint, and the very values of a GGUF file.

    Raises:
        ConfigError, UnsupportedModel: as `load_base`.
    """
    chosen = quantization or ("native" if is_gguf(base) else "none")
    if chosen in ("nf4", "int8"):
        return in_float32(load_base(base, quantization=chosen, device="cpu"))
    return load_base(base, quantization=chosen, device="cpu", dtype=torch.float32)


@torch.no_grad()
def merge_into(base: BaseModel, composition: Composition) -> None:
    """Add the sum of w s B A over all stacks to every weight of `base`, in place.

    Args:
        base: of `load_values`.
    """
    for stack, weight in composition:
        for place, A, B in factors(stack):
            parameter = base.sites[place].module.weight
            parameter.add_(B.float() @ A.float(), alpha=weight * stack.config.scaling)  # type: ignore[operator]


def save_checkpoint(base: BaseModel, directory: Path, dtype: torch.dtype) -> None:
    """Write configuration, weights in `dtype` (safetensors) and tokenizer, as transformers reads them.

    Raises:
        FileExistsError: there is such a directory.
        StorageFull: no room; none of it is left.
    """
    with quiet_transformers(), creating_directory(directory) as making, _os_errors():
        base.model.to(dtype).save_pretrained(making)
        if base.tokenizer is not None:
            base.tokenizer.save_pretrained(making)


@contextmanager
def _os_errors() -> Iterator[None]:
    """What safetensors and tokenizers, written in Rust, tell of the system in words becomes an OSError."""
    try:
        yield
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
