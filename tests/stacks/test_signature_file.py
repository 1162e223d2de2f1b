"""A stack file may have a routing signature, which is checked as all else in it is."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from brainstacks.config import SignatureConfig
from brainstacks.errors import InvalidArtifact
from brainstacks.stacks.artifact import StackMetadata, inspect_stack, stack_shapes
from brainstacks.stacks.signature_file import signature_shapes
from tests.stacks.files import BASE, CONFIG, pack, random_tensors, stack_metadata, stack_tensors


def test_a_file_may_have_a_signature_in_float32_beside_weights_of_another_dtype(tmp_path: Path) -> None:
    path = tmp_path / "signed.safetensors"
    path.write_bytes(signed())
    found = inspect_stack(path)
    assert found.metadata.signature == SignatureConfig(4, 2, 9, "nf4")
    assert "signature" not in json.loads(stack_metadata().to_json()), "readers that know of none read it"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"signature.mean": None}, "'signature.mean' is missing"),
        ({"signature.spread": ("F32", (1, 2, 4), bytes(32))}, "signature.spread.*needs"),
        ({"signature.distances": ("F16", (2,), bytes(4))}, "it is F32"),
        ({"signature.more": ("F32", (1,), bytes(4))}, "too many"),
        ({"signature.mean": ("F32", (2, 4), b"\0\0\xc0\x7f" * 8)}, "NaN or infinity"),
    ],
)
def test_a_signature_that_is_not_what_the_metadata_say_is_refused(
    tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    path = tmp_path / "signed.safetensors"
    path.write_bytes(signed(change))
    with pytest.raises(InvalidArtifact, match=match):
        inspect_stack(path)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"directions": 65},
        {"directions": 0},
        {"prompts": True},
        {"mid_weight": 2},
        {"quantization": "nf3"},
        {"other": 1},
    ],
)
def test_impossible_facts_of_a_signature_are_refused(change: dict[str, Any]) -> None:
    document = json.loads(stack_metadata(signature=SignatureConfig(4, 2, 9, "nf4")).to_json())
    document["signature"] |= change
    with pytest.raises(InvalidArtifact, match="'signature' of the metadata is refused"):
        StackMetadata.from_json(json.dumps(document))


def signed(change: Mapping[str, Any] | None = None) -> bytes:
    """A sound stack in BF16 with a signature, or with these tensors of it changed; None leaves one out."""
    metadata = stack_metadata(signature=SignatureConfig(4, 2, 9, "nf4"))
    weights = {
        name: ("BF16", shape, bytes(len(data) // 2)) for name, (_, shape, data) in stack_tensors().items()
    }
    tensors = weights | random_tensors(signature_shapes(metadata.signature)) | dict(change or {})
    return pack({n: t for n, t in tensors.items() if t is not None}, {"brainstacks": metadata.to_json()})


def test_a_tensor_that_nothing_can_be_made_a_view_of_is_refused(tmp_path: Path) -> None:
    """Weights of two bytes before it: an odd number of them."""
    config = dataclasses.replace(CONFIG, projections=("v_proj",), experts=1, rank=1, layers=1)
    metadata = StackMetadata(
        "odd", 1, config, {"v_proj": (1, 1)}, BASE, signature=SignatureConfig(4, 2, 9, "nf4")
    )
    weights = {name: ("BF16", shape, bytes(2 * math.prod(shape))) for name, shape in stack_shapes(metadata)}
    signature = random_tensors(signature_shapes(metadata.signature))
    path = tmp_path / "odd.safetensors"
    path.write_bytes(pack(weights | signature, {"brainstacks": metadata.to_json()}))
    with pytest.raises(InvalidArtifact, match=r"'signature\.centre' begins at byte 6"):
        inspect_stack(path)
    path.write_bytes(pack(signature | weights, {"brainstacks": metadata.to_json()}))
    assert inspect_stack(path).metadata == metadata
