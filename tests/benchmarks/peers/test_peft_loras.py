"""PEFT sums its LoRAs or gives each row its own, and its rsLoRA is our single expert."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.instruments.timing import timed
from benchmarks.peers.peft_loras import PeftPeer, with_loras
from benchmarks.serving.traffic import random_prompts
from brainstacks.base_model import BaseModel, load_base
from brainstacks.layers.hooks import CompositionHooks
from tests.tiny import VOCAB, stack_config
from training.rounds.active_stack import ActiveStack

PROMPTS = random_prompts(VOCAB, 7, 4, seed=0)


def test_peft_sums_adapters_or_gives_each_row_its_own(tiny_base: BaseModel) -> None:
    pytest.importorskip("peft")
    peer = PeftPeer(tiny_base, adapters=2, rank=4)
    one = timed(peer.summed(PROMPTS, 1), 6).tokens
    both = timed(peer.summed(PROMPTS, 2), 6).tokens
    mixed = timed(peer.mixed(PROMPTS), 6).tokens
    assert timed(peer.summed(PROMPTS, 1), 6).tokens == one, "a run sets its own adapters"
    assert one != both
    assert mixed[0::2] == one[0::2], "even rows have the first adapter alone"
    assert mixed[1::2] != one[1::2]


def test_a_single_expert_gives_the_logits_of_pefts_rslora(tiny_base: BaseModel, tiny_directory: Path) -> None:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    active = ActiveStack(stack_config(rank=3, alpha=8.0, experts=1, top_k=1), tiny_base.identity.dims).eval()
    with torch.no_grad():
        for up in active.up.values():
            up.normal_(std=0.1)
    tensors = active.export()
    ids = torch.arange(12)[None]
    hooks = CompositionHooks(tiny_base.sites)
    hooks.attach()
    with torch.no_grad(), hooks.composed(active):
        ours = tiny_base.model(ids, use_cache=False).logits
    plain = load_base(tiny_directory, quantization="none", device="cpu", dtype=torch.float32)
    wrapped = with_loras(plain, r=3, lora_alpha=8.0, use_rslora=True).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parts = name.split(".")
                layer, projection = parts[parts.index("layers") + 1], parts[-4]
                parameter.copy_(tensors[f"layers.{layer}.{projection}.{'A' if 'lora_A' in name else 'B'}"])
        theirs = wrapped(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
