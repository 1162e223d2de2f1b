"""A base is loaded from anywhere, quantised or not, with one identity; gradients reach its inputs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from brainstacks.base_model import (
    BaseModel,
    identify_base,
    load_base,
    parse_dtype,
)
from brainstacks.config import PROJECTIONS
from brainstacks.errors import ConfigError, UnsupportedModel
from tests.tiny import END, FAMILIES, VOCAB, save_base, tiny_model


def load(directory: Path, **options: Any) -> BaseModel:
    return load_base(directory, **{"quantization": "none", "device": "cpu", **options})


# --- identity ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_with_its_dimensions(tmp_path: Path, family: str) -> None:
    base = load(save_base(tmp_path / family, family))
    assert base.name == family
    assert base.identity.architecture == family
    assert (base.identity.layers, base.identity.hidden_size) == (2, 32)
    assert base.identity.dims["k_proj"] == (32, 16)
    assert base.identity.dims["down_proj"] == (48, 32)
    assert set(base.sites) == {(layer, p) for layer in range(2) for p in PROJECTIONS}
    assert (base.vocab_size, base.max_context, base.dtype) == (VOCAB, 512, torch.float32)
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())


def test_the_fingerprint_does_not_depend_on_quantisation_or_dtype(tmp_path: Path) -> None:
    directory = save_base(tmp_path / "base")
    plain = load(directory).identity
    for options in ({"quantization": "nf4"}, {"quantization": "int8"}, {"dtype": torch.bfloat16}):
        assert load(directory, **options).identity == plain
    assert identify_base(directory) == plain


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
def test_the_fingerprint_tells_other_weights_and_other_dimensions(tmp_path: Path, family: str) -> None:
    prints = [
        identify_base(save_base(tmp_path / str(i), family, seed, tokenizer=False, **changes)).fingerprint
        for i, (seed, changes) in enumerate(
            [(0, {}), (1, {}), (0, {"num_attention_heads": 2, "head_dim": 16})]
        )
    ]
    assert len(set(prints)) == 3


def test_a_changed_embedding_alone_changes_the_fingerprint(tmp_path: Path) -> None:
    model = tiny_model()
    before = identify_base(save_base(tmp_path / "a", tokenizer=False)).fingerprint
    with torch.no_grad():
        model.model.embed_tokens.weight[7, 3] += 1.0
    model.save_pretrained(tmp_path / "b")
    assert identify_base(tmp_path / "b").fingerprint != before


def test_the_fingerprint_does_not_depend_on_how_the_checkpoint_is_cut_into_files(tmp_path: Path) -> None:
    whole = identify_base(save_base(tmp_path / "whole", tokenizer=False)).fingerprint
    tiny_model().save_pretrained(tmp_path / "cut", max_shard_size="40KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1
    assert identify_base(tmp_path / "cut").fingerprint == whole


def test_weights_that_the_index_does_not_list_are_no_part_of_the_base(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    stray = {"model.norm.weight": torch.zeros(32), "layers.0.attention_norm.weight": torch.zeros(32)}
    whole = save_base(tmp_path / "whole", tokenizer=False)
    tiny_model().save_pretrained(tmp_path / "cut", max_shard_size="40KB")
    before = identify_base(whole).fingerprint
    for directory in (whole, tmp_path / "cut"):
        for name in ("consolidated.safetensors", "adapter_model.safetensors"):
            save_file(stray, directory / name)
        assert identify_base(directory).fingerprint == before
        assert load(directory).identity.fingerprint == before


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "index.json is damaged"),
        ("[]", "index.json is damaged"),
        ('{"weight_map": {"a": 1}}', "index.json is damaged"),
        ('{"weight_map": {}}', "lacks weights"),
        ('{"weight_map": {"a": "gone.safetensors"}}', r"lacks gone\.safetensors"),
        ('{"weight_map": {"a": "../whole/model.safetensors"}}', "lacks"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, index: str, message: str) -> None:
    whole = save_base(tmp_path / "whole", tokenizer=False)
    cut = tmp_path / "cut"
    cut.mkdir()
    shutil.copy(whole / "config.json", cut)
    (cut / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UnsupportedModel, match=message):
        identify_base(cut)


def test_a_tied_head_is_the_embedding_whether_or_not_the_file_repeats_it(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = save_base(tmp_path / "base", tokenizer=False, tie_word_embeddings=True)
    before = identify_base(directory).fingerprint
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    assert identify_base(directory).fingerprint == before


# --- quantisation --------------------------------------------------------------------------------


@pytest.mark.parametrize(("quantization", "kind"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt")])
def test_quantisation_replaces_the_projections_and_stays_close(
    tmp_path: Path, quantization: str, kind: str
) -> None:
    directory = save_base(tmp_path / "base", hidden_size=64, intermediate_size=128)
    ids = torch.arange(12)[None]
    plain = load(directory)
    base = load(directory, quantization=quantization, dtype=torch.float32)
    assert {type(s.module).__name__ for s in base.sites.values()} == {kind}
    assert base.identity.dims == plain.identity.dims
    with torch.no_grad():
        found, exact = base.model(ids).logits.flatten(), plain.model(ids).logits.flatten()
    assert not torch.equal(found, exact)
    assert torch.nn.functional.cosine_similarity(found, exact, dim=0) > 0.8


def dequantised(module: nn.Module) -> torch.Tensor:
    import bitsandbytes.functional as bnb

    weight: Any = module.weight
    full: torch.Tensor = bnb.dequantize_4bit(weight.data, weight.quant_state)
    return full.float()


def input_gradient(base: BaseModel) -> tuple[torch.Tensor, torch.Tensor]:
    """d(sum of outputs * c)/dx of the first q_proj [1, T, d_in]: through the module, and by its weights."""
    site = base.sites[0, "q_proj"]
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 5, site.d_in, generator=random).to(base.dtype).requires_grad_()
    cotangent = torch.randn(1, 5, site.d_out, generator=random).to(base.dtype)
    site.module(x).backward(cotangent)
    if x.grad is None:
        raise AssertionError("no gradient reached the input")
    return x.grad.float(), cotangent.float() @ dequantised(site.module)


def test_the_input_gradient_of_an_nf4_base_survives_an_evaluation(tmp_path: Path) -> None:
    directory = save_base(tmp_path / "base", hidden_size=64, intermediate_size=128)
    base = load(directory, quantization="nf4")
    for _ in range(2):
        found, exact = input_gradient(base)
        torch.testing.assert_close(found, exact, atol=0.02 * float(exact.abs().max()), rtol=0.02)
        with torch.no_grad():  # the trap: this forward would repack the weights for inference
            base.model(torch.arange(8)[None])


@pytest.mark.slow
def test_the_input_gradient_of_the_packaged_nf4_base_survives_an_evaluation(packaged_base: BaseModel) -> None:
    with torch.no_grad():
        packaged_base.model(torch.arange(8)[None])
    found, exact = input_gradient(packaged_base)
    torch.testing.assert_close(found, exact, atol=0.02 * float(exact.abs().max()), rtol=0.02)


@pytest.mark.slow
def test_the_gradient_reaches_the_packaged_bases_embeddings_through_all_layers(
    packaged_base: BaseModel,
) -> None:
    embedded = packaged_base.model.get_input_embeddings()(torch.arange(5)[None]).detach().requires_grad_()
    packaged_base.model(inputs_embeds=embedded, use_cache=False).logits[0, -1].float().max().backward()
    assert embedded.grad is not None
    assert torch.isfinite(embedded.grad).all()
    assert (embedded.grad.float().norm(dim=-1) > 0).all()


@pytest.mark.slow
def test_the_packaged_base_is_what_its_name_says(packaged_base: BaseModel) -> None:
    assert packaged_base.name == "smollm2-135m-instruct"
    assert packaged_base.identity == dataclasses.replace(
        identify_base("packaged:smollm2-135m-instruct"), id="smollm2-135m-instruct"
    )
    assert (packaged_base.identity.layers, packaged_base.identity.hidden_size) == (30, 576)
    assert packaged_base.chat_tokenizer().decode(packaged_base.eos_token_ids) == "<|im_end|>"
    assert packaged_base.dtype == torch.bfloat16


# --- ends of text, tokenizer ---------------------------------------------------------------------


def test_ends_of_text_come_from_the_generation_config_which_lists_them_all(tmp_path: Path) -> None:
    directory = save_base(tmp_path / "base")
    assert load(directory).eos_token_ids == (END,)
    path = directory / "generation_config.json"
    document = json.loads(path.read_text()) | {"eos_token_id": [258, 256]}
    path.write_text(json.dumps(document))
    assert load(directory).eos_token_ids == (258, 256)


def test_a_base_without_a_tokenizer_loads_and_says_so_when_text_is_asked_for(tmp_path: Path) -> None:
    base = load(save_base(tmp_path / "bare", tokenizer=False))
    assert base.tokenizer is None
    with pytest.raises(UnsupportedModel, match="'bare' has no tokenizer"):
        base.chat_tokenizer()


# --- refusals ------------------------------------------------------------------------------------


def test_an_unknown_quantization_device_or_dtype_is_named(tmp_path: Path) -> None:
    directory = save_base(tmp_path / "base", tokenizer=False)
    with pytest.raises(ConfigError, match="'int3'"):
        load(directory, quantization="int3")
    with pytest.raises(ConfigError, match="'tpu'"):
        load(directory, device="tpu")
    with pytest.raises(ConfigError, match="'float8'"):
        parse_dtype("float8")
    assert parse_dtype("auto") is None
    assert parse_dtype("bfloat16") is torch.bfloat16


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    directory = save_base(tmp_path / "base", tokenizer=False)
    (directory / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match="'base'"):
        load(directory)
    with pytest.raises(UnsupportedModel, match="no safetensors weights"):
        identify_base(directory)


def test_a_base_without_the_seven_projections_is_refused_by_name(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UnsupportedModel, match="GPT2LMHeadModel"):
        load(tmp_path / "gpt2")
    with pytest.raises(UnsupportedModel, match="GPT2LMHeadModel"):
        identify_base(tmp_path / "gpt2")


def test_loading_twice_gives_the_same_logits(tmp_path: Path) -> None:
    directory = save_base(tmp_path / "base")
    copy = shutil.copytree(directory, tmp_path / "copy")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(load(directory).model(ids).logits, load(copy).model(ids).logits)
