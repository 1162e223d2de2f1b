"""A merged checkpoint computes what its composition computes, and transformers reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from brainstacks import ComposedModel
from brainstacks.base_model import identify_base, in_float32, load_base
from brainstacks.config import Quantization
from brainstacks.errors import DomainNotFound, InvalidArtifact
from brainstacks.merging import load_values, merge_into, read_composition, save_checkpoint
from brainstacks.stacks.registry import Registry
from tests.stacks.adapters import IDS
from tests.tiny import publish_stack, random_stack, save_base, stack_config

WEIGHTS = {"law": 0.6, "math": -1.3}
ONE = {"experts": 1, "top_k": 1}


def publish(base: Path, registry: Registry, tmp_path: Path) -> None:
    identity = identify_base(base)
    law = random_stack(identity.dims, 1, rounds=2, config=stack_config(**ONE))
    math = random_stack(
        identity.dims, 2, config=stack_config(rank=3, projections=("q_proj", "up_proj"), **ONE)
    )
    publish_stack(registry, identity, "law", law, tmp_path)
    publish_stack(registry, identity, "math", math, tmp_path)


def merged(
    base: Path, registry: Registry, to: Path, quantization: Quantization | None, dtype: torch.dtype
) -> Any:
    composition = read_composition(registry, WEIGHTS, identify_base(base))
    loaded = load_values(base, quantization)
    merge_into(loaded, composition)
    save_checkpoint(loaded, to, dtype)
    return AutoModelForCausalLM.from_pretrained(to)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}], ids=["", "tied"])
def test_logits_are_those_of_the_composition(
    changes: dict[str, Any], tmp_path: Path, registry: Registry
) -> None:
    base = save_base(tmp_path / "base", **changes)
    publish(base, registry, tmp_path)
    model = merged(base, registry, tmp_path / "merged", None, torch.float32)
    assert model.dtype == torch.float32
    ours = ComposedModel.load(base, tmp_path / "registry", quantization="none", device="cpu", dtype="float32")
    torch.testing.assert_close(logits(model), ours.logits(IDS, WEIGHTS), atol=5e-5, rtol=1e-5)
    assert (logits(model) - ours.logits(IDS)).abs().max() > 0.1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    messages = [{"role": "user", "content": "hé"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False).startswith("<|im_start|>user\nhé")
    again = load_base(tmp_path / "merged", quantization="none", device="cpu")
    assert again.identity.dims == ours.base.identity.dims


def test_in_bfloat16_each_weight_is_rounded_once(
    tiny_directory: Path, tmp_path: Path, registry: Registry
) -> None:
    publish(tiny_directory, registry, tmp_path)
    whole = merged(tiny_directory, registry, tmp_path / "whole", None, torch.float32)
    half = merged(tiny_directory, registry, tmp_path / "half", None, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    for (name, there), (_, here) in zip(whole.named_parameters(), half.named_parameters(), strict=True):
        assert torch.equal(there.bfloat16(), here), name


def test_the_values_of_a_quantised_base_can_be_the_start(
    tiny_directory: Path, tmp_path: Path, registry: Registry
) -> None:
    publish(tiny_directory, registry, tmp_path)
    model = merged(tiny_directory, registry, tmp_path / "merged", "nf4", torch.float32)
    assert getattr(model.config, "quantization_config", None) is None
    served = in_float32(load_base(tiny_directory, quantization="nf4", device="cpu"))
    ours = ComposedModel.from_base(served, registry)
    torch.testing.assert_close(logits(model), ours.logits(IDS, WEIGHTS), atol=5e-5, rtol=1e-5)


def test_gates_and_unknown_domains_are_refused_before_a_weight_is_loaded(
    tiny_directory: Path, tmp_path: Path, registry: Registry
) -> None:
    identity = identify_base(tiny_directory)
    publish_stack(registry, identity, "chat", random_stack(identity.dims, 3), tmp_path)
    with pytest.raises(InvalidArtifact, match="the stack of 'chat' has 3 experts"):
        read_composition(registry, {"chat": 1.0}, identity)
    with pytest.raises(DomainNotFound):
        read_composition(registry, {"law": 1.0}, identity)
