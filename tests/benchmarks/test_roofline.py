"""Bytes per step: the base as it is held, and of each used stack the experts that are computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.random_stacks import save_random_stack
from benchmarks.roofline import StepBytes, base_bytes, read_bandwidth, step_bytes
from brainstacks.base_model import BaseModel, load_base
from brainstacks.stacks.artifact import StackMetadata, read_stack_metadata
from brainstacks.stacks.tensors import load_stack
from tests.tiny import save_base


@pytest.fixture
def stack(tmp_path: Path, tiny_base: BaseModel) -> tuple[StackMetadata, int, int]:
    """(metadata, bytes of its gates, bytes of its factors) in float32, with 2 of 4 experts kept."""
    path = tmp_path / "stack.safetensors"
    save_random_stack(path, tiny_base.identity, "one", rank=2, dtype=torch.float32)
    sizes = {name: tensor.nbytes for name, tensor in load_stack(path).tensors.items()}
    gates = sum(size for name, size in sizes.items() if name.endswith(".gate"))
    return read_stack_metadata(path), gates, sum(sizes.values()) - gates


def test_a_stack_that_no_row_uses_is_not_read(stack: tuple[StackMetadata, int, int]) -> None:
    metadata, gates, factors = stack
    stacks = {"one": metadata, "two": metadata}
    assert step_bytes(1000, [{}, {}], stacks, 4) == StepBytes(1000, 1000)
    assert step_bytes(1000, [{"one"}, {"one"}], stacks, 4).all_experts == 1000 + gates + factors
    assert step_bytes(0, [{"one"}, {"two"}], stacks, 4).all_experts == 2 * (gates + factors)


def test_the_more_rows_the_more_experts_are_kept(stack: tuple[StackMetadata, int, int]) -> None:
    metadata, gates, factors = stack
    for rows, share in ((1, 0.5), (2, 0.75), (3, 0.875)):
        found = step_bytes(0, [{"one"}] * rows, {"one": metadata}, 4)
        assert found.chosen_experts == gates + round(share * factors)


def test_base_bytes_are_the_weights_that_a_step_reads(tiny_base: BaseModel, tmp_path: Path) -> None:
    everything = sum(p.nbytes for p in tiny_base.model.parameters())
    embedding = tiny_base.model.get_input_embeddings().weight.nbytes
    assert base_bytes(tiny_base) == everything - embedding  # untied: a step reads a row per token
    tied = load_base(save_base(tmp_path, tie_word_embeddings=True), quantization="none", device="cpu")
    assert base_bytes(tied) == sum(p.nbytes for p in tied.model.parameters())


def test_bandwidth_bounds_the_tokens_of_all_rows() -> None:
    assert StepBytes(200, 100).bounds(4, 1000.0) == (20.0, 40.0)
    assert read_bandwidth(torch.device("cpu"), 1 << 20) > 0
