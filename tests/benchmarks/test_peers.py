"""Peers run what their names say, on the same prompts as the engine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from torch import nn

from benchmarks import peers
from benchmarks.engine_batch import engine_batch
from benchmarks.timing import timed
from benchmarks.traffic import random_prompt
from brainstacks.base_model import BaseModel, load_base
from brainstacks.config import EngineConfig, Quantization
from brainstacks.engine.engine import StepEngine
from brainstacks.layers.projections import find_sites
from tests.tiny import VOCAB

PROMPTS = [random_prompt(VOCAB, 7, seed) for seed in range(4)]


def test_generate_gives_the_tokens_of_the_engines_base(tiny_directory: Path, tiny_base: BaseModel) -> None:
    plain = load_base(tiny_directory, quantization="none", device="cpu")
    theirs = timed(peers.transformers_batch(plain.model, PROMPTS, plain.device), 6)
    ours = timed(engine_batch(StepEngine(tiny_base, None, EngineConfig()), PROMPTS, [{}] * 4), 6)
    assert ours.tokens == theirs.tokens
    assert theirs.decoded == 4 * 5


def test_peft_sums_adapters_or_gives_each_row_its_own(tiny_base: BaseModel) -> None:
    pytest.importorskip("peft")
    peer = peers.PeftPeer(tiny_base, adapters=2, rank=4)
    one = timed(peer.summed(PROMPTS, 1), 6).tokens
    both = timed(peer.summed(PROMPTS, 2), 6).tokens
    mixed = timed(peer.mixed(PROMPTS), 6).tokens
    assert timed(peer.summed(PROMPTS, 1), 6).tokens == one, "a run sets its own adapters"
    assert one != both
    assert mixed[0::2] == one[0::2], "even rows have the first adapter alone"
    assert mixed[1::2] != one[1::2]


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
    plain = peers.dequantized(load(), dtype)
    for key, site in find_sites(plain).items():
        assert type(site.module) is nn.Linear
        assert site.module.weight.dtype == dtype
        torch.testing.assert_close(site.module.weight.data, expected[key].to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("base", "device", "package", "reason"),
    [
        ("some/hub-id", "cpu", True, "the base is no GGUF file"),
        ("model.gguf", "cuda", True, "the base on cuda"),
        ("model.gguf", "cpu", False, "is not installed"),
    ],
)
def test_llama_cpp_is_left_out_with_a_word(
    base: str,
    device: str,
    package: bool,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(peers, "installed", lambda name: package)
    assert peers.llama_cpp_file(base, torch.device(device)) is None
    assert reason in capsys.readouterr().out
    monkeypatch.setattr(peers, "installed", lambda name: True)
    assert peers.llama_cpp_file("model.gguf", torch.device("cpu")) == Path("model.gguf")


def test_a_base_without_a_gguf_file_has_none() -> None:
    assert peers.gguf_of("some/hub-id") is None
    assert peers.gguf_of("folder/model.gguf") == Path("folder/model.gguf")
    packaged = peers.gguf_of("packaged:smollm2-135m-instruct")
    assert packaged is None or packaged.suffix == ".gguf"
