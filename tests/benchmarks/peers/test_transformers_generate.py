"""transformers generates what the engine's base does, and plain linears have the values of quantised ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from torch import nn

from benchmarks.instruments.timing import timed
from benchmarks.peers.transformers_generate import dequantized, transformers_batch
from benchmarks.serving.engine_batch import engine_batch
from benchmarks.serving.traffic import random_prompts
from brainstacks.base_model import BaseModel, load_base
from brainstacks.config import EngineConfig, Quantization
from brainstacks.engine.engine import StepEngine
from brainstacks.layers.projections import find_sites
from tests.tiny import VOCAB

PROMPTS = random_prompts(VOCAB, 7, 4, seed=0)


def test_generate_gives_the_tokens_of_the_engines_base(tiny_directory: Path, tiny_base: BaseModel) -> None:
    plain = load_base(tiny_directory, quantization="none", device="cpu")
    theirs = timed(transformers_batch(plain.model, PROMPTS, plain.device), 6)
    ours = timed(engine_batch(StepEngine(tiny_base, None, EngineConfig()), PROMPTS, [{}] * 4), 6)
    assert ours.tokens == theirs.tokens
    assert theirs.decoded == 4 * 5


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dequantised_base_has_the_same_values_in_plain_linears(
    tiny_directory: Path, quantization: Quantization, dtype: torch.dtype
) -> None:
    load = partial(load_base, tiny_directory, quantization=quantization, device="cpu")
    modules: dict[tuple[int, str], Any] = {key: site.module for key, site in load().sites.items()}
    expected = {
        key: functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        if quantization == "nf4"
        else module.weight.data
        for key, module in modules.items()
    }
    plain = dequantized(load(), dtype)
    for key, site in find_sites(plain).items():
        assert type(site.module) is nn.Linear
        assert site.module.weight.dtype == dtype
        torch.testing.assert_close(site.module.weight.data, expected[key].to(dtype), rtol=0, atol=0)
