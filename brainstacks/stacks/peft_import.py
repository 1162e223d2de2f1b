"""A PEFT LoRA, `adapter_config.json` and `adapter_model.safetensors`, becomes a stack of one expert.

    <module>.lora_A.weight      [r, d_in]
    <module>.lora_B.weight      [d_out, r]

A LoRA adds s B A x, and so does a stack of one expert, whose gate is always 1. The rounds of a stack have one
rank, one scale and all layers: lower ranks are filled up with zeros, a linear without a LoRA is all zeros,
and where scales differ, B holds its own by the largest. Only the two files are read, and never a pickle.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from brainstacks.base_files import base_name
from brainstacks.base_identity import BaseIdentity
from brainstacks.config import PROJECTIONS, StackConfig
from brainstacks.errors import ConfigError, IncompatibleArtifact, InvalidArtifact
from brainstacks.stacks.artifact import StackFile, StackMetadata
from brainstacks.stacks.document import parse_json, show
from brainstacks.stacks.envelope import MAX_METADATA_CHARS
from brainstacks.stacks.module_names import ModuleName, Note, is_of_another_tower, note_dropped, unwrapped
from brainstacks.stacks.peft_config import CONFIG_NAME, PeftConfig
from brainstacks.stacks.safetensors_file import Header, check_values, read_header
from brainstacks.stacks.tensors import save_stack

WEIGHTS_NAME = "adapter_model.safetensors"

_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(?:\.\w+)?\.weight")

Loras = Mapping[ModuleName, Mapping[str, str]]
"""Of each linear, A and B: their names in the file."""


def import_adapter(
    directory: Path, base: BaseIdentity, domain: str, output: Path, note: Note = print
) -> StackFile:
    """Write the adapter in `directory` as a stack of `domain`; `output` appears whole or not at all.

    Args:
        base: what it is to be served on; its shapes are checked, as the adapter knows no more than a name.
        note: receives one line for each thing that was dropped, filled up, or cannot be checked.

    Raises:
        InvalidArtifact: a file is missing or unsound, or asks for what a stack cannot carry; it is named.
        IncompatibleArtifact: it is of a base of other shapes.
        StorageFull: no room.
    """
    document = _document(directory / CONFIG_NAME)
    config = PeftConfig.from_document(document)
    path = directory / WEIGHTS_NAME
    if not path.is_file():
        raise InvalidArtifact(
            f"the directory has no {WEIGHTS_NAME}; save the adapter with PEFT's save_pretrained (the pickle "
            "adapter_model.bin is never read)"
        )
    header = read_header(path)
    loras = _loras(header, note)
    _check_base(loras, header, config, base)
    _check_config(loras, header, config, base)
    check_values(path, header)
    name = base_name(config.base) if config.base else ""
    if name != base.id:
        said = f"says that its base is {show(name)}" if name else "does not say what its base is"
        note(f"the adapter {said}; its shapes fit {base.id!r}, and shapes are all that can be checked")
    metadata = _metadata(loras, config, base, domain, {**document, "base_model_name_or_path": name})
    ranks = sorted({config.rank_of(str(module)) for module in loras})
    if len(ranks) > 1:
        note(f"ranks {ranks[0]}..{ranks[-1]} are all filled up to {ranks[-1]} with zeros")
    tensors = dict(_tensors(load_file(path, device="cpu"), loras, config, metadata))
    return save_stack(output, metadata, tensors)


def _document(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InvalidArtifact(
            f"the directory has no {path.name}; name the one that PEFT saved the adapter to"
        )
    if (size := path.stat().st_size) > MAX_METADATA_CHARS:
        raise InvalidArtifact(f"{path.name} has {size} bytes; at most {MAX_METADATA_CHARS} are read")
    document: dict[str, Any] = parse_json(path.read_bytes(), path.name)
    return document


def _loras(header: Header, note: Note) -> Loras:
    """What the file holds, each linear with both its factors, all under one prefix."""
    loras: dict[ModuleName, dict[str, str]] = {}
    dropped = 0
    for key in header.tensors:
        match = _TENSOR.fullmatch(key)
        if match and is_of_another_tower(key):
            dropped += 1
            continue
        module = ModuleName.parse(unwrapped(match["module"])) if match else None
        if match is None or module is None:
            raise InvalidArtifact(
                f"{WEIGHTS_NAME} has the tensor {show(key)}, which a stack cannot carry: it holds lora_A and "
                f"lora_B of {', '.join(PROJECTIONS)} of decoder layers and nothing else; train without it"
            )
        other = loras.setdefault(module, {}).setdefault(match["part"], key)
        if other != key:
            raise InvalidArtifact(f"{WEIGHTS_NAME} has both {show(other)} and {show(key)}; one is expected")
    note_dropped(WEIGHTS_NAME, dropped, note)
    if not loras:
        raise InvalidArtifact(f"{WEIGHTS_NAME} has no LoRA; it holds lora_A and lora_B of linears")
    prefixes = sorted({module.prefix for module in loras})
    if len(prefixes) > 1:
        raise InvalidArtifact(f"{WEIGHTS_NAME} has layers under {show(prefixes)}; one decoder is expected")
    for module, parts in loras.items():
        if missing := {"A", "B"} - set(parts):
            raise InvalidArtifact(f"{WEIGHTS_NAME} lacks lora_{missing.pop()} of {module}; save it again")
    return loras


def _check_base(loras: Loras, header: Header, config: PeftConfig, base: BaseIdentity) -> None:
    for module, parts in loras.items():
        found = [header.tensors[parts[part]].shape for part in "AB"]
        d_in, d_out = base.dims[module.projection]
        fits = all(len(shape) == 2 for shape in found) and (found[0][1], found[1][0]) == (d_in, d_out)
        if not fits or module.layer >= base.layers:
            raise IncompatibleArtifact(
                f"{module} of the adapter has A {list(found[0])} and B {list(found[1])}; {base.id!r} has "
                f"{base.layers} layers, where it maps {d_in} -> {d_out}; name the base that it was "
                f"trained on ({show(base_name(config.base)) if config.base else 'it does not say which'})"
            )


def _check_config(loras: Loras, header: Header, config: PeftConfig, base: BaseIdentity) -> None:
    """The two files must agree: PEFT itself leaves out what the configuration does not name."""
    prefix = next(iter(loras)).prefix
    for layer in range(base.layers):
        for projection in PROJECTIONS:
            module = ModuleName(prefix, layer, projection)
            if config.targeted(str(module)) != (module in loras):
                has, lacks = (WEIGHTS_NAME, CONFIG_NAME) if module in loras else (CONFIG_NAME, WEIGHTS_NAME)
                raise InvalidArtifact(f"{has} has a LoRA of {module}, and {lacks} has none; save both again")
    for module, parts in loras.items():
        rank = config.rank_of(str(module))
        found = header.tensors[parts["A"]].shape[0], header.tensors[parts["B"]].shape[1]
        if found != (rank, rank):
            raise InvalidArtifact(
                f"{module} has the ranks {found[0]} (A) and {found[1]} (B), and {CONFIG_NAME} says {rank}; "
                "save both again"
            )


def _metadata(
    loras: Loras, config: PeftConfig, base: BaseIdentity, domain: str, document: Mapping[str, Any]
) -> StackMetadata:
    rank = max(config.rank_of(str(module)) for module in loras)
    scaling = max(config.scaling_of(str(module)) for module in loras)
    projections = tuple(p for p in PROJECTIONS if any(module.projection == p for module in loras))
    try:
        shape = StackConfig(rank, scaling * math.sqrt(rank), 1, 1, projections, base.layers)
    except ConfigError as error:
        raise InvalidArtifact(f"the adapter is refused: {error.message}") from error
    return StackMetadata(
        domain=domain,
        rounds=1,
        config=shape,
        dims={projection: base.dims[projection] for projection in projections},
        base=base.ref,
        hyperparameters={"peft": document},
        tool_versions={"peft": str(document.get("peft_version", ""))},
        description="Imported from a PEFT adapter",
    )


def _tensors(
    found: Mapping[str, Tensor], loras: Loras, config: PeftConfig, metadata: StackMetadata
) -> Iterator[tuple[str, Tensor]]:
    """By name; in the adapter's dtype, or float32 where it has several or B takes up a scale."""
    largest = max(config.scaling_of(str(module)) for module in loras)
    dtypes = {found[key].dtype for parts in loras.values() for key in parts.values()}
    scaled = any(config.scaling_of(str(module)) != largest for module in loras)
    dtype = torch.float32 if scaled or len(dtypes) > 1 else dtypes.pop()
    rank, prefix = metadata.config.rank, next(iter(loras)).prefix
    for layer in range(metadata.config.layers):
        for projection in metadata.config.projections:
            d_in, d_out = metadata.dims[projection]
            A, B = torch.zeros(rank, d_in, dtype=dtype), torch.zeros(d_out, rank, dtype=dtype)
            module = ModuleName(prefix, layer, projection)
            if module in loras:
                own = config.rank_of(str(module))
                scale = config.scaling_of(str(module)) / largest
                A[:own] = found[loras[module]["A"]]
                B[:, :own] = found[loras[module]["B"]].to(dtype) * scale
            name = f"rounds.0.layers.{layer}.{projection}"
            yield from (
                (f"{name}.A", A),
                (f"{name}.B", B),
                (f"{name}.gate", torch.zeros(1, d_in, dtype=dtype)),
            )
