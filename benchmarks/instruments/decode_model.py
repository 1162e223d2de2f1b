"""A decode step of the cuda backend: its launches, their bytes, and how long these ought to take. A model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any

import numpy as np
import torch

from benchmarks.instruments.decoders import decoder_config
from benchmarks.instruments.fake_gpu import FakeGpu, Launches
from brainstacks.config import EngineConfig, StackConfig
from brainstacks.engine.block_manager import blocks_for
from brainstacks.engine.runner.batch import Span, StepBatch
from brainstacks.engine.runner.cuda_backend import CudaBackend
from brainstacks.engine.runner.kv_cache import PagedCache
from brainstacks.gpu_kernels.delta_kernels import COLUMNS
from brainstacks.gpu_kernels.deltas import DECODE
from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import PackedStack, Shape
from brainstacks.layers.projections import INPUT_GROUPS

RANK, EXPERTS, TOP_K = 16, 4, 2
LAYERS = 2
"""That are run; all of a decoder are alike but for their windows: of Gemma 3, one in six has none."""

NF4 = 0.5 + 1 / 64
"""Bytes of a weight: its code and its part of a scale, itself quantised."""
SAMPLING = 12
"""Launches after the logits of greedy rows: argmax, log-softmax, gathers, the copy back. Counted by hand."""


@dataclass(frozen=True)
class Gpu:
    """Attributes:
    bandwidth: of its memory, bytes/s; flops: of dense bfloat16 products, 1/s; both by its data sheet.
    capability, processors: what bitsandbytes chooses its kernels by.
    share: of both that a kernel reaches; assumed.
    processor: bytes/s that one multiprocessor reads at; assumed.
    """

    name: str
    bandwidth: float
    flops: float
    capability: tuple[int, int]
    processors: int
    share: float = 0.8
    processor: float = 5e10


GPUS = (
    Gpu("H200", 4.8e12, 989e12, (9, 0), 132),
    Gpu("RTX 4090 (24 GB)", 1.008e12, 165e12, (8, 9), 128),
)


@dataclass(frozen=True)
class Launch:
    """Attributes:
    kind: base, linear, or of deltas: down (beside a group's linears) and up (after them).
    nbytes: that it reads and writes; serial: those that one program reads one after the other.
    weights: (M, N, K) of an NF4 linear, whose bytes depend on the GPU's kernel; else None.
    """

    kind: str
    nbytes: float
    flops: float = 0.0
    serial: float = 0.0
    weights: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Decode:
    """Attributes:
    layer: launches from one layer's attention to the next one's.
    once: all others, which are another such round and what comes before and after the layers.
    layers: rounds, without that one.
    """

    layer: tuple[Launch, ...]
    once: tuple[Launch, ...]
    layers: int

    def all(self, gpu: Gpu) -> list[Launch]:
        """As this GPU's kernels for NF4 would launch them, all layers one after the other."""
        layer = [part for launch in self.layer for part in _linear(launch, gpu)]
        return layer * self.layers + [part for launch in self.once for part in _linear(launch, gpu)]

    def nbytes(self, gpu: Gpu) -> float:
        return sum(launch.nbytes for launch in self.all(gpu))

    def launches(self, gpu: Gpu) -> int:
        return len(self.all(gpu))


@dataclass(frozen=True)
class Time:
    """Seconds of a step.

    Attributes:
        floor: microseconds that a launch takes at the least.
        beside: a group's first launch of deltas shares the memory with its linears, and is waited for then.
    """

    gpu: Gpu
    floor: float
    beside: bool = True

    def of(self, step: Decode) -> float:
        total = 0.0
        waiting: Launch | None = None
        base, nbytes = 0.0, 0.0
        for launch in step.all(self.gpu):
            if launch.kind == "down" and self.beside:
                waiting, base, nbytes = launch, 0.0, launch.nbytes
            elif launch.kind == "up" and waiting is not None:
                shared = nbytes / (self.gpu.bandwidth * self.gpu.share)
                total += max(base, self._one(waiting), shared) + self._one(launch)
                waiting = None
            elif waiting is not None:
                base, nbytes = base + self._one(launch), nbytes + launch.nbytes
            else:
                total += self._one(launch)
        return total

    def _one(self, launch: Launch) -> float:
        return max(
            self.floor * 1e-6,
            launch.nbytes / (self.gpu.bandwidth * self.gpu.share),
            launch.flops / (self.gpu.flops * self.gpu.share),
            launch.serial / self.gpu.processor,
        )


# --- the program ---------------------------------------------------------------------------------


def decode(decoder: str, rows: int, context: int, stacks: int) -> Decode:
    """A step of so many rows of `context` tokens, each composed of so many stacks; few layers are run."""
    config = decoder_config(decoder, num_hidden_layers=LAYERS)
    gpu = FakeGpu()
    base = gpu.base(config)
    bank = StackBank(torch.device("cpu"), torch.bfloat16)
    shape = Shape.of(StackConfig(RANK, 16.0, EXPERTS, TOP_K, layers=LAYERS), base.identity.dims)
    for at in range(stacks):
        memory = torch.empty(shape.size(1), dtype=torch.bfloat16)  # never read
        bank.put(at, PackedStack(shape, 1, 4.0, memory))
    with gpu.on():
        cache = PagedCache(
            LAYERS, 8, config.num_key_value_heads, config.head_dim, base.device, torch.bfloat16
        )
        backend = CudaBackend(base, cache, "a model", EngineConfig(backend="cuda", max_batch_size=rows))
    for key in bank.keys:
        backend.prepare(bank.resident(key).stack)
    batch = _batch(rows, context, dict.fromkeys(range(stacks), 1.0))
    with gpu.on():
        backend.run(batch, bank)  # makes its tensors
        seen = Launches()
        with seen:
            backend.run(batch, bank)
    launches = _launches(seen, decoder, rows, context, stacks)
    # From one layer's new keys and values to the next one's; what is before and after is another such round.
    first, second = (at for at, name in enumerate(seen.names) if name == "store_kv")
    real = decoder_config(decoder)
    once = [*launches[:first], *launches[second:]]
    sampled = [Launch("base", 3 * rows * real.vocab_size * 4 / SAMPLING)] * SAMPLING
    return Decode(tuple(launches[first:second]), (*once, *sampled), real.num_hidden_layers - 1)


def _batch(rows: int, context: int, weights: dict[Any, float]) -> StepBatch:
    return StepBatch(
        rows=(),
        spans=tuple(Span(at, 1, context - 1) for at in range(rows)),
        decoding=rows,
        ids=np.zeros(rows, np.int64),
        positions=np.full(rows, context - 1),
        blocks=np.ones((rows, blocks_for(context)), np.int32),
        places=np.ones(rows, np.int64),
        weights=[weights] * rows,
        wanted=np.arange(rows),
        wanted_counts=(1,) * rows,
    )


def _launches(seen: Launches, decoder: str, rows: int, context: int, stacks: int) -> list[Launch]:
    """With the bytes that each really moves."""
    config = decoder_config(decoder)
    head = (config.vocab_size, config.hidden_size)
    found = []
    for call, nbytes in zip(seen.calls, seen.nbytes, strict=True):
        name, *tensors = call
        shapes = [shape for _, _, shape, _ in tensors]
        if name == "linear":
            n, k = shapes[1]
            moved = rows * (n + k) * 2
            quantised = None if (n, k) == head else (rows, n, k)
            weight = 0 if quantised else 2 * n * k
            found.append(Launch("linear", moved + weight, 2.0 * rows * n * k, weights=quantised))
        elif name == "delta_down":
            found.append(_down(shapes[0][-1], _projections("down", found), rows, stacks))
        elif name == "delta_up":
            found.append(_up(shapes[: _projections("up", found)], rows, stacks))
        else:
            found.append(Launch("base", _others(name, nbytes, config, rows, context)))
    return found


def _others(name: str, nbytes: int, config: Any, rows: int, context: int) -> float:
    vector = config.num_key_value_heads * config.head_dim * 2
    queries = rows * config.num_attention_heads * config.head_dim
    chunks = ceil(context / 256)
    if name == "store_kv":
        return float(4 * rows * vector)
    if name == "attend":
        return float(rows * context * 2 * vector + queries * (2 + 4 * chunks))
    if name == "combine":
        return float(queries * (4 * chunks + 2))
    if name == "embedding":
        return float(4 * rows * config.hidden_size)
    return nbytes


def _chosen(rows: int) -> float:
    """Share of a stack's experts that some row's gate keeps, rows taken to choose independently."""
    return float(1 - (1 - TOP_K / EXPERTS) ** rows)


def _projections(kind: str, before: Sequence[Launch]) -> int:
    """How many the group of the next launch of this kind has."""
    done = sum(launch.kind == kind for launch in before) % len(INPUT_GROUPS)
    return len(INPUT_GROUPS[done])


def _down(d_in: int, projections: int, rows: int, stacks: int) -> Launch:
    factors = projections * EXPERTS * d_in * 2 * (1 + RANK * _chosen(rows)) * stacks
    pairs = stacks * ceil(rows / DECODE.tokens)
    pieces = max(1, min(DECODE.splits, 4 * 132 // (pairs * projections), d_in // DECODE.inputs))
    hidden = pieces * pairs * projections * min(rows, DECODE.tokens) * COLUMNS * 4
    # A program reads all of a projection's gates, and its piece of A.
    serial = EXPERTS * d_in * 2 * (1 + RANK * _chosen(rows) / pieces)
    return Launch("down", factors + hidden + rows * d_in * 2, serial=serial)


def _up(outputs: Sequence[tuple[int, ...]], rows: int, stacks: int) -> Launch:
    columns = EXPERTS * RANK * _chosen(rows)
    factors = stacks * columns * sum(shape[1] for shape in outputs) * 2
    hidden = DECODE.splits * stacks * len(outputs) * min(rows, DECODE.tokens) * COLUMNS * 4
    through = 2 * 2 * rows * sum(shape[1] for shape in outputs)
    return Launch("up", factors + hidden + through, serial=stacks * columns * DECODE.outputs * 2)


# --- bitsandbytes --------------------------------------------------------------------------------


def _linear(launch: Launch, gpu: Gpu) -> list[Launch]:
    """A fused product, or the weights written as bfloat16 and then multiplied: bitsandbytes' choice."""
    if launch.weights is None:
        return [launch]
    m, n, k = launch.weights
    weights = n * k
    if _fused(gpu.capability, gpu.processors)(m, n, k):
        return [Launch("linear", launch.nbytes + NF4 * weights, launch.flops)]
    scales = weights / 64
    return [
        Launch("linear", 5 * scales),  # scales, which are quantised themselves
        Launch("linear", 8 * scales),  # and have an offset
        Launch("linear", (NF4 + 2) * weights),
        Launch("linear", launch.nbytes + 2 * weights, launch.flops),
    ]


@cache
def _fused(capability: tuple[int, int], processors: int) -> Callable[[int, int, int], bool]:
    """Whether bitsandbytes 0.50.2 has a fused kernel multiply (M, N, K) on such a GPU: its own rule."""
    missing = "_cuda_getCurrentRawStream"
    lacks = not hasattr(torch._C, missing)
    if lacks:  # a build for CPUs, and its module for CUDA names it at import
        setattr(torch._C, missing, None)
    try:
        from bitsandbytes.backends.cuda import ops
    finally:
        if lacks:
            delattr(torch._C, missing)

    def rule(m: int, n: int, k: int) -> bool:
        before = ops._gpu_dispatch_props
        ops._gpu_dispatch_props = lambda device: (processors, *capability)
        try:
            # Cached by its arguments, of which the device is one: each kind of GPU is a device of its own.
            device = hash((capability, processors))
            fits = m <= ops._gemm_4bit_custom_max_m
            return bool(fits and ops._gemm_4bit_use_custom_cuda(device, torch.bfloat16, m, n, k))
        finally:
            ops._gpu_dispatch_props = before

    return rule
