"""What is not the published .pt layout is refused by name: nothing is published, no code in it runs."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from brainstacks.errors import InvalidArtifact
from brainstacks.stacks.legacy import import_reference
from brainstacks.stacks.registry import Registry
from tests.stacks.published import BASE, DIMS, read

KEY = "model.layers.1.mlp.up_proj.active_stack"


def edit_manifest(published: Path, change: Any) -> None:
    path = published / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def refusal(published: Path, registry: Registry, **options: Any) -> str:
    """What the import is refused with; nothing was published."""
    with pytest.raises(InvalidArtifact) as refused:
        import_reference(published, BASE, registry, note=lambda _: None, **options)
    assert registry.reload().generation == 0
    return refused.value.message


def edit(published: Path, change: Any, file: str = "code/stack_1.pt") -> None:
    state = read(published / file)
    change(state)
    torch.save(state, published / file)


@pytest.mark.parametrize("name", ["experts.0.A", "experts.1.B", "experts.3.B", "router"])
def test_a_missing_key_is_named(published: Path, registry: Registry, name: str) -> None:
    edit(published, lambda state: state.pop(f"{KEY}.{name}.weight"))
    assert f"code/stack_1.pt, up_proj of layer 1 lacks '{name}.weight'" in refusal(published, registry)


def test_a_missing_expert_is_not_taken_for_a_smaller_stack(published: Path, registry: Registry) -> None:
    edit(published, lambda state: state.pop(f"{KEY}.experts.3.A.weight"))
    assert "up_proj of layer 1 lacks 'experts.3.A.weight'" in refusal(published, registry)


def test_a_missing_module_or_layer_is_named(published: Path, registry: Registry) -> None:
    edit(published, lambda state: [state.pop(key) for key in list(state) if key.startswith(KEY)])
    assert "nothing for up_proj of layer 1" in refusal(published, registry)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (f"{KEY}.experts.4.B.weight", "experts.4.B"),
        (f"{KEY}.experts.0.C.weight", "experts.0.C"),
        (f"{KEY}.router.bias", "router.bias"),
        ("model.layers.1.mlp.up_proj.weight", "unknown key"),
        ("model.layers.0.self_attn.out_proj.active_stack.router.weight", "out_proj"),
        (
            "model.layers.2.mlp.up_proj.active_stack.router.weight",
            "up_proj of layer 2; the base has 2 layers",
        ),
        ("other.layers.1.mlp.up_proj.active_stack.router.weight", "unknown key 'other"),
        ("model.language_model.layers.1.mlp.up_proj.active_stack.router.weight", "has both"),
    ],
)
def test_an_extra_key_is_named(published: Path, registry: Registry, key: str, message: str) -> None:
    edit(published, lambda state: state.update({key: torch.zeros(4, 32)}))
    assert message in refusal(published, registry)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("experts.0.A", (1, 32)),
        ("experts.0.A", (16, 1)),
        ("experts.2.B", (1, 16)),
        ("router", (1, 32)),
        ("router", (4, 1)),
        ("noise_linear", (4, 31)),
    ],
)
def test_a_shape_that_would_broadcast_is_refused(
    published: Path, registry: Registry, name: str, shape: tuple[int, int]
) -> None:
    edit(published, lambda state: state.update({f"{KEY}.{name}.weight": torch.zeros(shape)}))
    assert f"'{name}.weight' is torch.float32 {list(shape)}" in refusal(published, registry)


def test_a_value_that_is_not_finite_is_refused(published: Path, registry: Registry) -> None:
    edit(published, lambda state: state[f"{KEY}.router.weight"].fill_(float("nan")))
    assert "'rounds.0.layers.1.up_proj.gate' holds NaN" in refusal(published, registry)


def test_a_rank_that_is_not_the_files_is_refused(published: Path, registry: Registry) -> None:
    said = refusal(published, registry, rank=8)
    assert "'experts.0.A.weight' is torch.float32 [16, 32]; it needs floats [8, 32]" in said


def test_another_base_is_refused(published: Path, registry: Registry) -> None:
    narrow = dataclasses.replace(BASE, dims=DIMS | {"up_proj": (32, 64)})
    with pytest.raises(InvalidArtifact, match=r"up_proj of layer 0: 'experts.0.B.weight'"):
        import_reference(published, narrow, registry, note=lambda _: None)


class Canary:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return (os.mkdir, (self.path, 0o755))


@pytest.mark.parametrize("file", ["code/stack_1.pt", "meta_router.pt"])
def test_code_in_a_pickle_never_runs(published: Path, registry: Registry, tmp_path: Path, file: str) -> None:
    torch.save({"state_dict": Canary(str(tmp_path / "canary"))}, published / file)
    assert "is not a file of plain tensors" in refusal(published, registry)
    assert not (tmp_path / "canary").exists()


def test_files_that_are_no_pt_are_refused(published: Path, registry: Registry) -> None:
    for content in (b"", b"text", (published / "code" / "stack_1.pt").read_bytes()[:1000]):
        (published / "code" / "stack_1.pt").write_bytes(content)
        assert "is not a file of plain tensors" in refusal(published, registry)
    torch.save([1], published / "code" / "stack_1.pt")
    assert "holds a list" in refusal(published, registry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["domains"][1].update(stack_files=["../../etc/passwd"]), "not a file in the directory"),
        (lambda d: d["domains"][1].update(stack_files=["/etc/passwd"]), "not a file in the directory"),
        (lambda d: d["domains"][1].update(stack_files=["code/stack_9.pt"]), "not a file in the directory"),
        (lambda d: d["domains"][1].update(stack_files=[]), "no stack_files"),
        (lambda d: d["domains"][1].update(name="../x"), "cannot name a domain"),
        (lambda d: d["domains"][1].update(name="chat"), "lists each once"),
        (lambda d: d["domains"][1].update(num_inner_stacks=2), "num_inner_stacks 2"),
        (lambda d: d.update(total_stacks=4), "total_stacks 4"),
        (lambda d: d.update(domains=[]), "one at least"),
        (lambda d: d.pop("domains"), "lacks the field 'domains'"),
    ],
)
def test_a_manifest_that_does_not_agree_with_its_files_is_refused(
    published: Path, registry: Registry, change: Any, message: str
) -> None:
    edit_manifest(published, change)
    assert message in refusal(published, registry)


def test_a_directory_without_a_manifest_is_refused(tmp_path: Path, registry: Registry) -> None:
    assert "has no manifest.json" in refusal(tmp_path, registry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["state_dict"].pop("out.bias"), "'out.bias' is missing"),
        (lambda s: s["state_dict"].pop("global_query"), "global_query"),
        (lambda s: s["state_dict"].update({"extra": torch.zeros(1)}), "1 tensors too many"),
        (lambda s: s["state_dict"].update({"ff.4.bias": torch.zeros(1)}), "'ff.4.bias' has shape"),
        (lambda s: s["state_dict"].update({"out.bias": 3}), "'out.bias'"),
        (lambda s: s.pop("state_dict"), "state_dict"),
        (lambda s: s.update(domain_names=["chat", "code", "law"]), "routes to"),
        (lambda s: s.update(domain_names=[]), "n_domains 3"),
        (lambda s: s.update(token_dim=64), "token_dim 64"),
        (lambda s: s.pop("chat_floor"), "chat_floor None"),
        (lambda s: s.update(gate_threshold=2.0), "gate_threshold is 2.0"),
    ],
)
def test_an_unsound_router_is_refused_before_any_stack_is_published(
    published: Path, registry: Registry, change: Any, message: str
) -> None:
    edit(published, change, "meta_router.pt")
    assert message in refusal(published, registry)
