"""Router files: what they mean survives a round trip, and what is unsound is refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from brainstacks.config import MetaRouterConfig
from brainstacks.errors import IncompatibleArtifact, InvalidArtifact
from brainstacks.stacks.artifact import (
    DataSource,
    inspect_stack,
)
from brainstacks.stacks.router_artifact import (
    RouterMetadata,
    check_router_base,
    inspect_file,
    inspect_router,
    router_shapes,
)
from brainstacks.stacks.tensors import save_router
from tests.stacks.files import (
    BASE,
    pack,
    router_metadata,
    write_router,
)

STACKS = {"chat": "a" * 64, "code": "b" * 64}


def test_router_metadata_survives_a_round_trip() -> None:
    config = MetaRouterConfig(("chat", "code"), token_dim=4, hidden_dim=8, floors={"chat": 0.2})
    metadata = RouterMetadata(
        config, STACKS, BASE, {"lr": 8e-4}, (DataSource("x"),), 3, {"regret": 0.1}, {"torch": "2"}, "MIT", "d"
    )
    assert RouterMetadata.from_json(metadata.to_json()) == metadata


def test_a_router_file_is_checked_like_a_stack(tmp_path: Path) -> None:
    path = write_router(tmp_path / "f", STACKS)
    assert inspect_router(path).metadata == router_metadata(STACKS)
    assert inspect_file(path) == inspect_router(path)
    with pytest.raises(InvalidArtifact, match="is a 'router'; a 'stack' is expected"):
        inspect_stack(path)


@pytest.mark.parametrize("name", [name for name, _ in router_shapes(router_metadata(STACKS).config)])
def test_every_tensor_of_the_router_is_needed_in_its_shape(tmp_path: Path, name: str) -> None:
    metadata = router_metadata(STACKS)
    tensors = {key: torch.ones(shape) for key, shape in router_shapes(metadata.config)}
    with pytest.raises(InvalidArtifact, match=f"'{name}' has shape"):
        save_router(tmp_path / "f", metadata, tensors | {name: torch.ones(1, 1, 1)})
    del tensors[name]
    with pytest.raises(InvalidArtifact, match=f"'{name}' is missing"):
        save_router(tmp_path / "f", metadata, tensors)
    assert list(tmp_path.iterdir()) == []


def test_a_router_names_the_stacks_it_was_trained_with() -> None:
    metadata = router_metadata(STACKS)
    with pytest.raises(InvalidArtifact, match="stacks names"):
        dataclasses.replace(metadata, stacks={"chat": "a" * 64})
    with pytest.raises(InvalidArtifact, match="is no digest"):
        dataclasses.replace(metadata, stacks=STACKS | {"code": "latest"})
    with pytest.raises(InvalidArtifact, match="cannot name a domain"):
        router_metadata({"base": "a" * 64})


@pytest.mark.parametrize(
    "changes",
    [{"mid_weight": "x"}, {"dropout": None}, {"floors": [1]}, {"gate_threshold": "x"}, {"domains": [{}]}],
)
def test_an_impossible_router_configuration_is_refused(changes: dict[str, Any]) -> None:
    document = json.loads(router_metadata(STACKS).to_json())
    document["config"] |= changes
    with pytest.raises(InvalidArtifact):
        RouterMetadata.from_json(json.dumps(document))


def test_a_router_fits_its_own_base_only() -> None:
    metadata = router_metadata(STACKS)
    check_router_base(metadata, "f" * 64, 4)
    with pytest.raises(IncompatibleArtifact, match="fingerprint"):
        check_router_base(metadata, "e" * 64, 4)
    with pytest.raises(IncompatibleArtifact, match="width 4"):
        check_router_base(metadata, "f" * 64, 8)


def test_a_file_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(pack({}, {"brainstacks": '{"kind": "other"}'}))
    with pytest.raises(InvalidArtifact, match="'other'"):
        inspect_file(path)
