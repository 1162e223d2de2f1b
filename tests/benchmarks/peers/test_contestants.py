"""A native base is no slower for the peers than it has to be, and has its own values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.peers import contestants
from benchmarks.peers.contestants import in_faster_dtype
from benchmarks.peers.transformers_generate import dequantized
from brainstacks.base_model import BaseModel, load_base
from tests.tiny_gguf import save_gguf
from training.rounds.compute import Compute


@pytest.fixture
def native(tmp_path: Path) -> BaseModel:
    return load_base(save_gguf(tmp_path / "base.gguf"), quantization="native", device="cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peers_hold_a_native_base_in_the_dtype_that_is_faster(
    native: BaseModel, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {name: tensor.clone() for name, tensor in native.model.state_dict().items()}
    monkeypatch.setattr(contestants, "choose", lambda *asked, **options: Compute(dtype, "measured"))
    held = in_faster_dtype(native)
    assert held.dtype == getattr(torch, dtype)
    for name, tensor in held.model.state_dict().items():
        torch.testing.assert_close(tensor, values[name].to(held.dtype), rtol=0, atol=0)


def test_a_base_of_another_kind_is_as_it_was_loaded(tiny_base: BaseModel) -> None:
    assert in_faster_dtype(tiny_base) is tiny_base


def test_a_native_base_is_plain_linears_already(native: BaseModel) -> None:
    model = dequantized(native, torch.bfloat16)
    assert model is native.model
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
