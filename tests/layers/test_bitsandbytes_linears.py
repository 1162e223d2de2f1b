"""bitsandbytes' linears compute in one form, or are refused before they serve."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from brainstacks.errors import UnsupportedModel
from brainstacks.layers.bitsandbytes_linears import quantization_config, settle
from tests.layers.test_blocks import nf4_linear

bitsandbytes = pytest.importorskip("bitsandbytes")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_int8_on_a_gpu_looks_for_no_column_over_the_batch() -> None:
    on_gpu, on_cpu = (quantization_config("int8", device, torch.bfloat16) for device in (GPU, CPU))
    assert (on_gpu.load_in_8bit, on_gpu.llm_int8_threshold) == (True, 0.0)
    assert (on_cpu.load_in_8bit, on_cpu.llm_int8_threshold) == (True, 6.0)


@pytest.mark.parametrize("device", [CPU, GPU])
def test_nf4_is_the_same_on_every_device(device: torch.device) -> None:
    config = quantization_config("nf4", device, torch.float16)
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.float16


@pytest.mark.parametrize(("threshold", "alone"), [(0.0, True), (6.0, False)])
def test_without_outlier_columns_an_int8_row_is_the_same_bits_beside_any_other(
    threshold: float, alone: bool
) -> None:
    module = bitsandbytes.nn.Linear8bitLt(64, 32, bias=False, has_fp16_weights=False, threshold=threshold)
    random = torch.Generator().manual_seed(0)
    module.load_state_dict({"weight": torch.randn(32, 64, generator=random)})
    module.to("cpu").eval().requires_grad_(False)
    row, other = torch.randn(2, 1, 64, generator=random).half()
    other[0, 5] = 9.0  # an outlier
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        beside = module(torch.cat([row, other]))[:1]
        assert torch.equal(module(row), beside) == alone


def test_a_second_quantisation_that_no_kernel_computes_is_refused_by_the_linears_name() -> None:
    model: Any = nn.ModuleDict({"q_proj": nf4_linear(8, 64)})
    settle(model, GPU)
    model["q_proj"].weight.quant_state.state2.blocksize = 64
    with pytest.raises(UnsupportedModel, match=r"scales of q_proj are quantised in blocks of 64.*256"):
        settle(model, GPU)


@pytest.mark.parametrize(("device", "said"), [(GPU, 1), (CPU, 0)])
def test_rows_that_are_no_whole_blocks_are_told_of_once_and_not_at_every_call(
    caplog: pytest.LogCaptureFixture, device: torch.device, said: int
) -> None:
    model: Any = nn.ModuleDict({"o_proj": nf4_linear(8, 96), "q_proj": nf4_linear(8, 64)})
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        settle(model, device)
        assert len(caplog.records) == said
        if said:
            assert "rows of 1 linears, such as o_proj" in caplog.text
            warnings.warn(
                "inner dimension (96) is not aligned for fast kernel with blocksize=64, falling back",
                stacklevel=1,
            )


def test_no_linear_repacks_its_weights_at_its_first_forward() -> None:
    model: Any = nn.ModuleDict({"q_proj": nf4_linear(8, 64)})
    model["q_proj"].support_avx512bf16_for_cpu = True
    settle(model, CPU)
    assert not model["q_proj"].support_avx512bf16_for_cpu
