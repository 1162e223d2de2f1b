"""The published .pt layout becomes stack and router files, tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from brainstacks.config import PROJECTIONS
from brainstacks.stacks.artifact import check_base, read_stack_metadata
from brainstacks.stacks.legacy import import_reference
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.router_artifact import read_router_metadata
from brainstacks.stacks.tensors import load_router_tensors, load_stack
from brainstacks.stacks.verify import verify
from tests.stacks.published import BASE, REFERENCE, read


def test_every_published_tensor_arrives_in_its_place(registry: Registry) -> None:
    import_reference(REFERENCE, BASE, registry, note=lambda _: None)
    manifest = json.loads((REFERENCE / "manifest.json").read_text())
    for domain in manifest["domains"]:
        version = registry.snapshot().domain(domain["name"]).current
        tensors = load_stack(registry.blob_path(version.digest)).tensors
        assert version.rounds == len(domain["stack_files"])
        assert len(tensors) == version.rounds * 2 * 7 * 3
        for number, file in enumerate(domain["stack_files"]):
            source = read(REFERENCE / file)
            for key, tensor in source.items():
                _, _, layer, _, projection, _, name = key.split(".", 6)
                place = f"rounds.{number}.layers.{layer}.{projection}"
                if name.startswith("experts."):
                    expert, part = int(name.split(".")[1]), name.split(".")[2]
                    rows = slice(16 * expert, 16 * expert + 16)
                    stacked = tensors[f"{place}.{part}"]
                    assert torch.equal(stacked[rows] if part == "A" else stacked[:, rows], tensor), key
                elif name == "router.weight":
                    assert torch.equal(tensors[f"{place}.gate"], tensor), key
                else:
                    assert name == "noise_linear.weight"


def test_stacks_carry_all_that_rebuilds_them_in_the_manifests_order(registry: Registry) -> None:
    results = import_reference(REFERENCE, BASE, registry, note=lambda _: None)
    assert [result.name for result in results] == ["chat", "code", "math", "router"]
    assert list(registry.snapshot().domains) == ["chat", "code", "math"]
    metadata = read_stack_metadata(registry.blob_path(results[2].digest))
    check_base(metadata, BASE.fingerprint, BASE.dims, BASE.layers)
    config = metadata.config
    assert (config.rank, config.alpha, config.experts, config.top_k, config.scaling) == (16, 16.0, 4, 2, 4.0)
    assert (config.projections, config.layers) == (PROJECTIONS, 2)
    assert [(p.domain, p.digest) for p in metadata.predecessors] == [(r.name, r.digest) for r in results[:2]]
    assert metadata.losses == (
        {"round": 0, "before": 2.0, "after": 1.0},
        {"round": 1, "before": 1.0, "after": 1.0},
    )
    assert verify(registry) == []


def test_the_router_is_bound_to_the_digests_just_published(registry: Registry) -> None:
    notes: list[str] = []
    *stacks, router = import_reference(REFERENCE, BASE, registry, note=notes.append)
    path = registry.blob_path(router.digest)
    metadata = read_router_metadata(path)
    assert metadata.stacks == {stack.name: stack.digest for stack in stacks}
    config = metadata.config
    assert (config.domains, config.token_dim, config.hidden_dim) == (("chat", "code", "math"), 32, 512)
    assert (config.sequence_length, config.mid_weight, config.last_weight) == (256, 0.45, 0.55)
    assert (config.floors, config.gate_threshold) == ({"chat": 0.2}, 0.12)
    state = read(REFERENCE / "meta_router.pt")["state_dict"]
    loaded = load_router_tensors(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert any("first 256 tokens" in line for line in notes)


def test_importing_again_changes_nothing(registry: Registry) -> None:
    import_reference(REFERENCE, BASE, registry, note=lambda _: None)
    again = import_reference(REFERENCE, BASE, registry, note=lambda _: None)
    assert [result.created for result in again] == [False] * 4
    assert registry.generation == 4


def test_a_directory_without_a_router_gives_stacks_only(published: Path, registry: Registry) -> None:
    notes: list[str] = []
    (published / "meta_router.pt").unlink()
    import_reference(published, BASE, registry, note=notes.append)
    assert registry.snapshot().router is None
    assert any("no router" in line for line in notes)


@pytest.mark.parametrize(
    "prefix", ["model.language_model.layers", "language_model.model.layers", "base_model.model.model.layers"]
)
def test_multimodal_paths_are_mapped_and_vision_layers_dropped_aloud(
    published: Path, registry: Registry, prefix: str
) -> None:
    path = published / "code" / "stack_1.pt"
    state = {key.replace("model.layers", prefix): tensor for key, tensor in read(path).items()}
    vision = "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.active_stack"
    state[f"{vision}.router.weight"] = torch.zeros(4, 8)
    state[f"{vision}.experts.0.A.weight"] = torch.zeros(16, 8)
    torch.save(state, path)
    plain = Registry(published / "plain", create=True)
    import_reference(REFERENCE, BASE, plain, note=lambda _: None)
    notes: list[str] = []
    import_reference(published, BASE, registry, note=notes.append)
    assert registry.snapshot().domain("code").current.digest == plain.snapshot().domain("code").current.digest
    assert (
        "code/stack_1.pt: dropped 2 tensors of vision or audio layers, which text serving has no use for"
        in notes
    )
