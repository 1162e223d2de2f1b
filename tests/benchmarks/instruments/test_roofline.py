"""Bytes per step: the base as it is held, and of each used stack the experts that are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from benchmarks.instruments.random_stacks import save_random_stack
from benchmarks.instruments.roofline import (
    StackBytes,
    StepBytes,
    base_bytes,
    read_bandwidth,
    stack_bytes,
    step_bytes,
)
from brainstacks.base_model import BaseModel, load_base
from brainstacks.config import EngineConfig
from brainstacks.engine.engine import StepEngine
from brainstacks.stacks.tensors import load_stack
from tests.tiny import save_base

STACK = StackBytes(always=100, experts=1000, dropped=0.5)


def engine_of(base: BaseModel, backend: Literal["torch", "cpu"]) -> StepEngine:
    return StepEngine(base, None, EngineConfig(backend=backend, kv_cache_tokens=64))


def test_a_stack_that_no_row_uses_is_not_read() -> None:
    stacks = {"one": STACK, "two": STACK}
    assert step_bytes(1000, [{}, {}], stacks) == StepBytes(1000, 1000)
    assert step_bytes(1000, [{"one"}, {"one"}], stacks).all_experts == 2100
    assert step_bytes(0, [{"one"}, {"two"}], stacks).all_experts == 2200


def test_the_more_rows_the_more_experts_are_kept() -> None:
    for rows, share in ((1, 0.5), (2, 0.75), (3, 0.875)):
        assert step_bytes(0, [{"one"}] * rows, {"one": STACK}).chosen_experts == 100 + share * 1000


@pytest.mark.parametrize("rank", [2, 16])
def test_bytes_of_a_stack_are_those_that_a_backend_holds(
    rank: int, tmp_path: Path, tiny_base: BaseModel
) -> None:
    path = tmp_path / "stack.safetensors"
    save_random_stack(path, tiny_base.identity, "one", rank=rank, dtype=torch.float32)
    sizes = {name: tensor.nbytes for name, tensor in load_stack(path).tensors.items()}
    gates = sum(size for name, size in sizes.items() if name.endswith(".gate"))
    factors = sum(sizes.values()) - gates
    assert stack_bytes(engine_of(tiny_base, "torch"), path) == StackBytes(gates, factors, 0.5)
    found = stack_bytes(engine_of(tiny_base, "cpu"), path)  # exact: the tiny base is not quantised
    if rank == 2:  # one unit, with its gates: all of it is read by whoever uses the stack
        assert found.experts == 0
        assert found.always >= gates + factors
    else:
        assert found.always >= gates
        assert factors <= found.experts < 1.2 * factors


def test_base_bytes_are_the_weights_that_a_step_reads(tiny_base: BaseModel, tmp_path: Path) -> None:
    everything = sum(p.nbytes for p in tiny_base.model.parameters())
    embedding = tiny_base.model.get_input_embeddings().weight.nbytes
    read = base_bytes(engine_of(tiny_base, "torch"))
    assert read == everything - embedding  # untied: a step reads a row per token
    tied = load_base(save_base(tmp_path, tie_word_embeddings=True), quantization="none", device="cpu")
    assert base_bytes(engine_of(tied, "torch")) == sum(p.nbytes for p in tied.model.parameters())
    assert read <= base_bytes(engine_of(tiny_base, "cpu")) < 1.5 * read  # filled up to whole panels


def test_bandwidth_bounds_the_tokens_of_all_rows() -> None:
    assert StepBytes(200, 100).bounds(4, 1000.0) == (20.0, 40.0)
    assert read_bandwidth(torch.device("cpu"), 1 << 20) > 0
