"""A merged checkpoint computes what its composition computes, and transformers reads it."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from brainstacks import ComposedModel
from brainstacks.base_model import identify_base, in_float32, load_base
from brainstacks.config import Quantization
from brainstacks.errors import ConfigError, DomainNotFound, InvalidArtifact, StorageFull
from brainstacks.merging import load_values, merge_into, read_composition, save_checkpoint
from brainstacks.stacks.registry import Registry
from tests.stacks.adapters import IDS
from tests.tiny import publish_stack, random_stack, save_base, stack_config, write_router
from tests.tiny_gguf import save_gguf

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


def test_of_a_gguf_file_the_very_values_of_its_blocks_are_the_start(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = save_gguf(tmp_path / "base.gguf")
    publish(base, registry, tmp_path)
    model = merged(base, registry, tmp_path / "merged", None, torch.float32)
    ours = ComposedModel.load(base, tmp_path / "registry", quantization="native", device="cpu")
    torch.testing.assert_close(logits(model), ours.logits(IDS, WEIGHTS), atol=5e-5, rtol=1e-5)
    assert (logits(model) - ours.logits(IDS)).abs().max() > 0.1


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_the_values_of_a_quantised_base_can_be_the_start(
    quantization: Quantization, tiny_directory: Path, tmp_path: Path, registry: Registry
) -> None:
    publish(tiny_directory, registry, tmp_path)
    model = merged(tiny_directory, registry, tmp_path / "merged", quantization, torch.float32)
    assert getattr(model.config, "quantization_config", None) is None
    served = in_float32(load_base(tiny_directory, quantization=quantization, device="cpu"))
    ours = ComposedModel.from_base(served, registry)
    torch.testing.assert_close(logits(model), ours.logits(IDS, WEIGHTS), atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("threshold", [0.05, 0.12, 0.3])
def test_weights_are_those_that_a_server_of_the_registry_applies(
    tiny_directory: Path, tmp_path: Path, registry: Registry, threshold: float
) -> None:
    publish(tiny_directory, registry, tmp_path)
    identity = identify_base(tiny_directory)
    if threshold != 0.12:  # which goes for a registry without a router
        registry.publish_router(
            write_router(tmp_path / "router", registry, identity, gate_threshold=threshold)
        )
    ours = ComposedModel.load(tiny_directory, tmp_path / "registry", quantization="none", device="cpu")
    for weight in (0.1, -0.12, 0.2, 0.3, -0.31):
        if torch.equal(ours.logits(IDS, {"math": weight}), ours.logits(IDS)):
            with pytest.raises(ConfigError, match=f"the weight of 'math' is {weight}; .* above {threshold},"):
                read_composition(registry, {"math": weight}, identity)
        else:
            assert len(read_composition(registry, {"math": weight}, identity)) == 1


@pytest.mark.parametrize("weight", [0.0, -2.1, float("nan"), float("inf")])
def test_weights_that_a_server_refuses_are_refused(
    tiny_directory: Path, tmp_path: Path, registry: Registry, weight: float
) -> None:
    publish(tiny_directory, registry, tmp_path)
    with pytest.raises(ConfigError, match=rf"'math' is {weight}; its size is at most 2\.0"):
        read_composition(registry, {"math": weight}, identify_base(tiny_directory))


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_full_disk_is_told_and_leaves_nothing(
    tiny_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    base = load_values(tiny_directory)
    if file == "tokenizer.json":  # which is smaller than the weights are
        monkeypatch.setattr(base.model, "save_pretrained", lambda directory: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(StorageFull, match=r"no room to write merged \(File too large\)"):
            save_checkpoint(base, tmp_path / "merged", torch.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_gates_and_unknown_domains_are_refused_before_a_weight_is_loaded(
    tiny_directory: Path, tmp_path: Path, registry: Registry
) -> None:
    identity = identify_base(tiny_directory)
    publish_stack(registry, identity, "chat", random_stack(identity.dims, 3), tmp_path)
    with pytest.raises(InvalidArtifact, match="the stack of 'chat' has 3 experts"):
        read_composition(registry, {"chat": 1.0}, identity)
    config = stack_config(**ONE, applies="response")
    publish_stack(registry, identity, "code", random_stack(identity.dims, 4, config=config), tmp_path)
    with pytest.raises(InvalidArtifact, match="the stack of 'code' acts on the response alone"):
        read_composition(registry, {"code": 1.0}, identity)
    with pytest.raises(DomainNotFound):
        read_composition(registry, {"law": 1.0}, identity)
