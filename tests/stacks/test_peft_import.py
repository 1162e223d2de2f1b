"""A PEFT LoRA that was imported computes what PEFT computes with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from brainstacks import ComposedModel
from brainstacks.base_model import identify_base
from brainstacks.config import PROJECTIONS
from brainstacks.stacks.peft_import import WEIGHTS_NAME, import_adapter
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack
from tests.stacks.adapters import IDS, configure, load_adapters, peft_logits, save_adapter
from tests.tiny import FAMILIES, save_base, tiny_model

ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "rslora": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "rank pattern": {
        "target_modules": list(PROJECTIONS),
        "rank_pattern": {"v_proj": 1, r".*\.1\.mlp\.down_proj": 7, "down_proj": 2},
    },
    "alpha pattern": {
        "target_modules": list(PROJECTIONS),
        "alpha_pattern": {"model.layers.0.self_attn.q_proj": 1, "[kv]_proj": 5, "o_proj": 100},
    },
    "rank and alpha pattern of an rsLoRA": {
        "target_modules": list(PROJECTIONS),
        "use_rslora": True,
        "rank_pattern": {"q_proj|k_proj": 5},
        "alpha_pattern": {"k_proj": 0.5},
    },
    "one projection": {"target_modules": ["down_proj"]},
    "whole names": {"target_modules": ["model.layers.1.self_attn.o_proj", "layers.0.mlp.up_proj"]},
    "one layer": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 1},
    "layers of a pattern": {
        "target_modules": ["o_proj", "gate_proj"],
        "layers_to_transform": [0],
        "layers_pattern": ["blocks", "layers"],
    },
    "all linears": {"target_modules": "all-linear"},
    "a pattern": {"target_modules": r".*\.layers\.\d\.(self_attn\.[kv]|mlp\.up)_proj"},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["k_proj", "layers.1.mlp.up_proj"]},
    "bfloat16": {"target_modules": "all-linear", "dtype": torch.bfloat16},
    "bfloat16 with an alpha pattern": {
        "target_modules": ["q_proj", "k_proj"],
        "alpha_pattern": {"k_proj": 5},
        "dtype": torch.bfloat16,
    },
}


def published(adapter: Path, base: Path, registry: Registry, domain: str = "math") -> list[str]:
    """Import and publish; the notes."""
    notes: list[str] = []
    file = adapter.with_suffix(".safetensors")
    import_adapter(adapter, identify_base(base), domain, file, notes.append)
    registry.publish(file)
    return notes


@pytest.mark.parametrize("name", ADAPTERS)
def test_logits_are_pefts(name: str, tiny_directory: Path, tmp_path: Path, registry: Registry) -> None:
    adapter = save_adapter(tmp_path / "adapter", **ADAPTERS[name])
    published(adapter, tiny_directory, registry)
    theirs = peft_logits(load_adapters({"math": adapter}))
    ours = load(tiny_directory, tmp_path).logits(IDS, {"math": 1.0})
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    assert (theirs - peft_logits(tiny_model())).abs().max() > 0.1


def load(base: Path, tmp_path: Path) -> ComposedModel:
    return ComposedModel.load(base, tmp_path / "registry", quantization="none", device="cpu", dtype="float32")


@pytest.mark.parametrize("family", FAMILIES)
def test_of_every_family_of_bases(family: str, tmp_path: Path, registry: Registry) -> None:
    base = save_base(tmp_path / family, family)
    adapter = save_adapter(tmp_path / "adapter", family, target_modules="all-linear", use_rslora=True)
    published(adapter, base, registry)
    theirs = peft_logits(load_adapters({"math": adapter}, family))
    ours = load(base, tmp_path).logits(IDS, {"math": 1.0})
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-5)


def test_weighted_mixtures_are_pefts(tiny_directory: Path, tmp_path: Path, registry: Registry) -> None:
    """Each row with its own, of adapters of different ranks, scales and targets."""
    adapters = {
        "law": save_adapter(tmp_path / "law", seed=1, target_modules=["q_proj", "down_proj"], r=2),
        "math": save_adapter(tmp_path / "math", seed=2, target_modules="all-linear", use_rslora=True),
    }
    for domain, adapter in adapters.items():
        published(adapter, tiny_directory, registry, domain)
    rows = [{"law": 0.7, "math": 0.4}, {"law": 0.3, "math": 1.5}]
    ours = load(tiny_directory, tmp_path).logits(IDS, rows)
    for row, weights in enumerate(rows):
        model = load_adapters(adapters)
        model.add_weighted_adapter(list(weights), list(weights.values()), "mix", combination_type="cat")
        model.set_adapter("mix")
        theirs = peft_logits(model, IDS[row : row + 1])
        torch.testing.assert_close(ours[row : row + 1], theirs, atol=2e-5, rtol=1e-5)


def renamed(adapter: Path, change: Callable[[str], str]) -> None:
    tensors = load_file(adapter / WEIGHTS_NAME)
    save_file({change(name): tensor.clone() for name, tensor in tensors.items()}, adapter / WEIGHTS_NAME)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("base_model.model.", ""),
        ("base_model.model.", "module.base_model.model."),
        ("base_model.model.", "base_model.model._orig_mod."),
        ("base_model.model.", "base_model.model.base_model.model."),
        ("model.layers.0.", "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module."),
        ("mlp.", "_checkpoint_wrapped_module.mlp."),
        (".weight", ".default.weight"),
    ],
)
def test_names_that_training_has_wrapped_are_understood(
    old: str, new: str, tiny_directory: Path, tmp_path: Path
) -> None:
    base = identify_base(tiny_directory)
    adapter = save_adapter(tmp_path / "adapter", target_modules=["v_proj", "up_proj"])
    plain = import_adapter(adapter, base, "math", tmp_path / "plain", lambda _: None)
    renamed(adapter, lambda name: name.replace(old, new, 1))
    assert any(new in name for name in load_file(adapter / WEIGHTS_NAME))
    assert import_adapter(adapter, base, "math", tmp_path / "math", lambda _: None).digest == plain.digest


def test_the_decoder_of_a_multimodal_model_is_found_and_its_vision_is_dropped_aloud(
    tiny_directory: Path, tmp_path: Path
) -> None:
    base = identify_base(tiny_directory)
    adapter = save_adapter(tmp_path / "adapter", target_modules=["v_proj", "up_proj"])
    plain = import_adapter(adapter, base, "math", tmp_path / "plain", lambda _: None)
    renamed(adapter, lambda name: name.replace("model.layers", "model.language_model.layers"))
    tensors = load_file(adapter / WEIGHTS_NAME)
    tensors["base_model.model.model.vision_tower.layers.0.self_attn.v_proj.lora_A.weight"] = torch.zeros(3, 8)
    save_file(tensors, adapter / WEIGHTS_NAME)
    notes: list[str] = []
    assert import_adapter(adapter, base, "math", tmp_path / "math", notes.append).digest == plain.digest
    assert notes[0].startswith(f"{WEIGHTS_NAME}: dropped 1 tensors of vision or audio layers")


def test_the_file_keeps_the_adapters_numbers_and_its_dtype(tiny_directory: Path, tmp_path: Path) -> None:
    adapter = save_adapter(
        tmp_path / "adapter", target_modules=["v_proj"], layers_to_transform=[1], dtype=torch.bfloat16
    )
    file = import_adapter(adapter, identify_base(tiny_directory), "math", tmp_path / "math", lambda _: None)
    config, tensors = file.metadata.config, load_stack(tmp_path / "math").tensors
    assert (config.rank, config.experts, config.top_k, config.projections) == (3, 1, 1, ("v_proj",))
    assert config.scaling == pytest.approx(2.0)
    saved = load_file(adapter / WEIGHTS_NAME)
    for part in "AB":
        own = saved[f"base_model.model.model.layers.1.self_attn.v_proj.lora_{part}.weight"]
        assert own.dtype == torch.bfloat16
        assert torch.equal(tensors[f"rounds.0.layers.1.v_proj.{part}"], own)
        assert not tensors[f"rounds.0.layers.0.v_proj.{part}"].any()


def test_the_file_says_where_it_came_from(tiny_directory: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", target_modules=["v_proj"], rank_pattern={"0.*": 2})
    configure(adapter, base_model_name_or_path="/home/somebody/Other-7B")
    notes: list[str] = []
    base = identify_base(tiny_directory)
    file = import_adapter(adapter, base, "math", tmp_path / "math", notes.append)
    said = file.metadata.hyperparameters["peft"]
    assert (said["r"], said["base_model_name_or_path"]) == (3, "Other-7B")
    assert file.metadata.base == base.ref
    assert notes == [
        f"the adapter says that its base is 'Other-7B'; its shapes fit {base.id!r}, and shapes are all that "
        "can be checked",
        "ranks 2..3 are all filled up to 3 with zeros",
    ]
