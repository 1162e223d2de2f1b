"""A quantised base in float32: the very same values, exact gradients, nothing left of the quantised one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from torch import Tensor, nn

from brainstacks.base_model import BaseModel, in_float32, load_base
from brainstacks.config import Quantization
from brainstacks.layers.dequantized import dequantized, float32_bytes, is_quantized
from tests.tiny import FAMILIES, save_base

IDS = torch.arange(24).view(2, 12)
WHOLE_BLOCKS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def load(directory: Path, quantization: Quantization, **options: Any) -> BaseModel:
    return load_base(directory, quantization=quantization, device="cpu", **options)


def values(linear: Any) -> Tensor:
    """[d_out, d_in] float32, by bitsandbytes alone."""
    weight = linear.weight
    if hasattr(weight, "quant_state"):
        found: Tensor = bnb.dequantize_4bit(weight.data, weight.quant_state).float()
    else:
        found = bnb.int8_vectorwise_dequant(weight.data, weight.SCB)
    return found


def embedding_gradient(base: BaseModel) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of their mean square to the embedded tokens."""
    embedded = base.model.get_input_embeddings()(IDS).detach().requires_grad_()
    logits: Tensor = base.model(inputs_embeds=embedded, use_cache=False).logits
    logits.square().mean().backward()
    assert embedded.grad is not None
    return logits.detach(), embedded.grad


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_bit_for_bit_those_of_the_quantised_base(
    tmp_path: Path, family: str, quantization: Quantization
) -> None:
    base = load(save_base(tmp_path / family, family, **WHOLE_BLOCKS), quantization)
    before = {place: (values(s.module), s.module.bias) for place, s in base.sites.items()}
    rest = {name: p.float() for name, p in base.model.named_parameters() if not name.endswith("_proj.weight")}
    base = in_float32(base)
    assert base.dtype == base.model.dtype == torch.float32
    assert base.quantization == quantization  # whose values they are
    for place, (weight, bias) in before.items():
        module = base.sites[place].module
        assert type(module) is nn.Linear
        assert torch.equal(module.weight, weight)
        assert (module.bias is None) == (bias is None)
    parameters = dict(base.model.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in rest.items())
    assert not any(p.requires_grad for p in parameters.values())
    assert {t.dtype for t in (*parameters.values(), *base.model.buffers())} == {torch.float32}
    assert not base.model.training


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_a_plain_base_with_its_values(
    tmp_path: Path, family: str, quantization: Quantization
) -> None:
    directory = save_base(tmp_path / family, family, **WHOLE_BLOCKS)
    quantised, plain = load(directory, quantization), load(directory, "none", dtype=torch.bfloat16)
    plain.model.float()
    with torch.no_grad():
        for place, site in quantised.sites.items():
            plain.sites[place].module.weight.copy_(values(site.module))  # type: ignore[operator]
    for found, exact in zip(
        embedding_gradient(in_float32(quantised)), embedding_gradient(plain), strict=True
    ):
        assert torch.equal(found, exact)
        assert float(exact.abs().max()) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_stay_within_bfloat16s_rounding_of_the_packed_base(tmp_path: Path, family: str) -> None:
    """Each of a few dozen roundings in a row moves a value by at most 2^-9 of it, and they rarely add up."""
    directory = save_base(tmp_path / family, family, **WHOLE_BLOCKS)
    with torch.no_grad():
        packed = load(directory, "nf4").model(IDS).logits.float()
        exact = in_float32(load(directory, "nf4")).model(IDS).logits
        other = in_float32(load(directory, "int8")).model(IDS).logits
    assert float((packed - exact).norm() / exact.norm()) < 16 * 2**-9
    assert float((other - exact).norm() / exact.norm()) > 16 * 2**-9  # other values are told apart


def test_an_unquantised_base_is_widened_and_one_of_float32_stays_as_it_is(tmp_path: Path) -> None:
    directory = save_base(tmp_path / "base")
    narrow = load(directory, "none", dtype=torch.bfloat16)
    before = [p.float() for p in narrow.model.parameters()]
    assert all(map(torch.equal, in_float32(narrow).model.parameters(), before))
    base = load(directory, "none")
    modules = list(base.model.modules())
    assert [id(m) for m in in_float32(base).model.modules()] == [id(m) for m in modules]


def test_a_tied_head_stays_the_embedding(tmp_path: Path) -> None:
    base = in_float32(load(save_base(tmp_path / "base", tie_word_embeddings=True), "nf4"))
    assert base.model.get_output_embeddings().weight is base.model.get_input_embeddings().weight


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_the_bytes_are_known_before(tmp_path: Path, quantization: Quantization) -> None:
    base = load(save_base(tmp_path / "base", "qwen2", **WHOLE_BLOCKS), quantization)
    told = float32_bytes(base.model)
    assert told == sum(p.nbytes for p in in_float32(base).model.parameters())


def test_an_int8_linear_has_the_same_values_after_its_first_forward(tmp_path: Path) -> None:
    linear = load(save_base(tmp_path / "base", **WHOLE_BLOCKS), "int8").sites[0, "q_proj"].module
    before = dequantized(linear).weight
    linear(torch.randn(1, 3, 64).bfloat16())
    assert torch.equal(dequantized(linear).weight, before)


def test_a_weight_that_was_repacked_for_inference_is_refused(tmp_path: Path) -> None:
    site = load(save_base(tmp_path / "base", **WHOLE_BLOCKS), "nf4").sites[0, "q_proj"]
    module: Any = copy.deepcopy(site.module)
    assert is_quantized(module)
    module.weight.quant_state.packing_format_for_cpu = True  # what bitsandbytes notes then
    with pytest.raises(ValueError, match="before the first forward"):
        dequantized(module)
    dequantized(site.module)
