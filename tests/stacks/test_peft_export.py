"""A stack of one expert goes to PEFT and computes the same there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from brainstacks import ComposedModel
from brainstacks.base_model import BaseModel
from brainstacks.errors import InvalidArtifact
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.one_expert import check_one_expert
from brainstacks.stacks.peft_export import export_adapter
from brainstacks.stacks.peft_import import import_adapter
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack
from tests.stacks.adapters import IDS, load_adapters, peft_logits, save_adapter
from tests.tiny import publish_stack, random_stack, stack_config


def exported(stack: StackTensors, base: BaseModel, directory: Path) -> Path:
    names = {place: site.name for place, site in base.sites.items()}
    export_adapter(stack, "the stack of 'math'", "tiny", names, directory)
    return directory


@pytest.mark.parametrize("rounds", [1, 3])
def test_the_rounds_of_a_stack_become_one_lora(
    rounds: int, tiny_base: BaseModel, tmp_path: Path, registry: Registry
) -> None:
    config = stack_config(rank=3, alpha=5.0, experts=1, top_k=1)
    stack = random_stack(tiny_base.identity.dims, 7, rounds, config)
    publish_stack(registry, tiny_base.identity, "math", stack, tmp_path)
    adapter = exported(stack, tiny_base, tmp_path / "adapter")
    theirs = peft_logits(load_adapters({"math": adapter}))
    ours = ComposedModel.from_base(tiny_base, registry).logits(IDS, {"math": 1.0})
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    document = json.loads((adapter / "adapter_config.json").read_text())
    assert document["r"] == 3 * rounds
    assert document["lora_alpha"] / document["r"] == pytest.approx(config.scaling)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        {"target_modules": "all-linear", "rank_pattern": {"o_proj": 1}, "alpha_pattern": {"o_proj": 9}},
        {"target_modules": ["up_proj"], "layers_to_transform": [1], "dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_what_came_from_peft_goes_back_and_computes_the_same(
    settings: dict[str, Any], tiny_base: BaseModel, tmp_path: Path
) -> None:
    first = save_adapter(tmp_path / "first", **settings)
    import_adapter(first, tiny_base.identity, "math", tmp_path / "math", lambda _: None)
    second = exported(load_stack(tmp_path / "math"), tiny_base, tmp_path / "second")
    before, after = (peft_logits(load_adapters({"math": path})) for path in (first, second))
    torch.testing.assert_close(after, before, atol=2e-5, rtol=1e-5)


def test_an_adapter_that_came_and_went_is_the_same_file_again(tiny_base: BaseModel, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "r": 8, "lora_alpha": 16}
    first = save_adapter(tmp_path / "first", **settings)
    import_adapter(first, tiny_base.identity, "math", tmp_path / "math", lambda _: None)
    second = exported(load_stack(tmp_path / "math"), tiny_base, tmp_path / "second")
    weights = [path / "adapter_model.safetensors" for path in (first, second)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    document = json.loads((second / "adapter_config.json").read_text())
    assert {name: document[name] for name in settings} == settings
    again = import_adapter(second, tiny_base.identity, "math", tmp_path / "again", lambda _: None)
    assert torch.equal(
        load_stack(tmp_path / "again").tensors["rounds.0.layers.1.v_proj.B"],
        load_stack(tmp_path / "math").tensors["rounds.0.layers.1.v_proj.B"],
    )
    assert again.metadata.config == load_stack(tmp_path / "math").config


def test_gates_cannot_be_carried_and_nothing_is_left(tiny_base: BaseModel, tmp_path: Path) -> None:
    stack = random_stack(tiny_base.identity.dims, 1)
    with pytest.raises(
        InvalidArtifact, match="the stack of 'math' has 3 experts, between which gates choose"
    ):
        exported(stack, tiny_base, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_a_stack_that_acts_on_the_response_alone_is_refused() -> None:
    with pytest.raises(InvalidArtifact, match="acts on the response alone"):
        check_one_expert(stack_config(experts=1, top_k=1, applies="response"), "the stack")


def test_a_stack_that_adds_nothing_is_refused(tiny_base: BaseModel, tmp_path: Path) -> None:
    config = stack_config(experts=1, top_k=1)
    stack = random_stack(tiny_base.identity.dims, 1, config=config, size=0.0)
    with pytest.raises(InvalidArtifact, match="nothing to export"):
        exported(stack, tiny_base, tmp_path / "adapter")


def test_a_directory_that_is_there_is_left_alone(tiny_base: BaseModel, tmp_path: Path) -> None:
    stack = random_stack(tiny_base.identity.dims, 1, config=stack_config(experts=1, top_k=1))
    (tmp_path / "adapter").mkdir()
    with pytest.raises(FileExistsError):
        exported(stack, tiny_base, tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert list((tmp_path / "adapter").iterdir()) == []
