"""A decode step of the cuda backend, run on a GPU that computes nothing: its launches and their bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch

from benchmarks.instruments import nf4_linears
from benchmarks.instruments.decoders import decoder_config
from benchmarks.instruments.fake_gpu import FakeGpu, Launches
from benchmarks.instruments.gpu_time import Gpu, Launch
from benchmarks.instruments.kernel_costs import AttentionCosts, DeltaCosts
from brainstacks.config import EngineConfig, StackConfig
from brainstacks.engine.block_manager import blocks_for
from brainstacks.engine.completion import Completion
from brainstacks.engine.request import GenerationRequest, SamplingParams
from brainstacks.engine.runner.batch import Span, StepBatch
from brainstacks.engine.runner.cuda_backend import CudaBackend
from brainstacks.engine.runner.kv_cache import PagedCache
from brainstacks.engine.sampling.sampler import Sampler
from brainstacks.gpu_kernels.attention_kernel import tiling
from brainstacks.gpu_kernels.deltas import DECODE
from brainstacks.layers.bank import SlotWeights, StackBank
from brainstacks.layers.delta_plan import DeltaPlan, DeltaPlanner
from brainstacks.layers.packed_stack import PackedStack, Shape

STACKS, APPLIED = 10, 4
"""In the bank, and in a composition."""
LAYERS = 2
"""That are run, of all: they differ in how far back they look, and in nothing else."""
UP_TABLES = 7
"""Tensors of a `delta_up` beside its outputs, which come first."""
OWN, SAME, BASE = "own", "same", "base"
"""What rows are composed of: each of its own four stacks, all of the same four, or the base alone."""


@dataclass(frozen=True)
class Case:
    """Attributes:
    context: tokens of each row, its new one included.
    mix: one of `OWN`, `SAME` and `BASE`.
    """

    decoder: str
    rows: int
    context: int
    mix: str


@dataclass(frozen=True)
class Operation:
    """What the fake GPU saw: an operator, the shapes of its tensors, and the bytes of all of them."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    nbytes: int


@dataclass(frozen=True)
class Deltas:
    """Of a step: what it reads of the bank, and the plan for that."""

    weights: SlotWeights
    plan: DeltaPlan


@dataclass(frozen=True)
class Step:
    """Attributes:
    before, layer, after: operations up to the first layer's `store_kv`, from there to the next layer's, and
        from the last layer's on.
    sampling: greedy, of all rows.
    looks_back: of each layer, how many tokens.
    """

    case: Case
    before: tuple[Operation, ...]
    layer: tuple[Operation, ...]
    after: tuple[Operation, ...]
    sampling: tuple[Operation, ...]
    looks_back: tuple[int, ...]
    deltas: Deltas | None

    def launches(self, gpu: Gpu) -> list[Launch]:
        """In order, as this GPU's kernels for NF4 make them."""
        *inner, last = self.looks_back
        layers = {seen: list(_priced(self, self.layer, seen, gpu)) for seen in set(inner)}
        return [
            *_priced(self, self.before, last, gpu),
            *(launch for seen in inner for launch in layers[seen]),
            *_priced(self, self.after, last, gpu),
            *(Launch("sampling", one.name, one.nbytes) for one in self.sampling),
        ]


def decode_step(case: Case) -> Step:
    """Run it, with few of its layers."""
    whole = decoder_config(case.decoder)
    kinds = getattr(whole, "layer_types", None) or ["full_attention"] * whole.num_hidden_layers
    both = {"layer_types": [min(kinds), max(kinds)]} if len(set(kinds)) > 1 else {}
    config = decoder_config(case.decoder, num_hidden_layers=LAYERS, **both)
    seen, sampled, deltas = _run(case, config)
    operations = _operations(seen)
    first, last = (at for at, one in enumerate(operations) if one.name == "store_kv")
    window = getattr(whole, "sliding_window", None) or case.context
    return Step(
        case,
        tuple(operations[:first]),
        tuple(operations[first:last]),
        tuple(operations[last:]),
        tuple(_operations(sampled)),
        tuple(min(case.context, window) if "sliding" in kind else case.context for kind in kinds),
        deltas,
    )


def _operations(seen: Launches) -> list[Operation]:
    return [
        Operation(name, tuple(shape for _, _, shape, _ in tensors), nbytes)
        for (name, *tensors), nbytes in zip(seen.calls, seen.nbytes, strict=True)
    ]


def _run(case: Case, config: Any) -> tuple[Launches, Launches, Deltas | None]:
    gpu = FakeGpu()
    base = gpu.base(config)
    bank = StackBank(torch.device("cpu"), torch.bfloat16)
    shape = Shape.of(_stack(LAYERS), base.identity.dims)
    for at in range(STACKS if case.mix != BASE else 0):
        memory = torch.empty(shape.size(1), dtype=torch.bfloat16)  # never read
        bank.put(at, PackedStack(shape, 1, 4.0, "everywhere", [memory]))
    batch = _batch(case)
    weights = bank.slot_weights(batch.weights)
    with gpu.on():
        cache = PagedCache(base.parts, 8, config.num_key_value_heads, config.head_dim, torch.bfloat16)
        backend = CudaBackend(base, cache, "a model", EngineConfig(backend="cuda", max_batch_size=case.rows))
    for key in bank.keys:
        backend.prepare(bank.resident(key).stack)
    seen, sampled, completions = Launches(), Launches(), _completions(case.rows)
    with gpu.on():
        backend.run(batch, bank)  # makes its tensors
        with seen:
            logits = backend.run(batch, bank)
        with sampled:
            Sampler(None, ()).start(logits, completions, wait=False)
    plan = DeltaPlanner().plan(weights, DECODE.tokens) if weights.residents else None
    return seen, sampled, None if plan is None else Deltas(weights, plan)


def _stack(layers: int) -> StackConfig:
    return StackConfig(rank=16, alpha=16.0, experts=4, top_k=2, layers=layers)


def _batch(case: Case) -> StepBatch:
    rows, context = case.rows, case.context
    return StepBatch(
        rows=(),
        spans=tuple(Span(at, 1, context - 1) for at in range(rows)),
        decoding=rows,
        ids=np.zeros(rows, np.int64),
        positions=np.full(rows, context - 1),
        blocks=np.ones((rows, blocks_for(context)), np.int32),
        places=np.ones(rows, np.int64),
        weights=list(_compositions(case)),
        wanted=np.arange(rows),
        wanted_counts=(1,) * rows,
    )


def _compositions(case: Case) -> Iterator[dict[Any, float]]:
    random = Random(0)
    same = dict.fromkeys(range(APPLIED), 1.0)
    for _ in range(case.rows):
        if case.mix == OWN:
            yield dict.fromkeys(random.sample(range(STACKS), APPLIED), 1.0)
        else:
            yield same if case.mix == SAME else {}


def _completions(rows: int) -> list[Completion]:
    greedy = SamplingParams(temperature=0.0)
    state = Sampler(None, ()).new_state(greedy, (0,), 0)
    return [Completion(GenerationRequest("", (0,), greedy), 0, state, None) for _ in range(rows)]


def _priced(step: Step, operations: Sequence[Operation], seen: int, gpu: Gpu) -> Iterator[Launch]:
    """With the bytes that each really moves.

    Args:
        seen: how many tokens the layer looks back.
    """
    case, config = step.case, decoder_config(step.case.decoder)
    head = (config.vocab_size, config.hidden_size)
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    tile = tiling(heads // kv_heads, head_dim, torch.bfloat16, partial=True)
    attention = AttentionCosts(case.rows, heads, kv_heads, head_dim, seen, tile, gpu)
    priced = {"store_kv": attention.store, "attend": attention.attend, "combine": attention.combine}
    for at, one in enumerate(operations):
        if one.name in priced:
            yield priced[one.name]()
        elif one.name == "linear":
            n, k = one.shapes[1]
            if (n, k) == head:  # is not quantised
                nbytes, flops = 2 * (n * k + case.rows * (n + k)), 2.0 * case.rows * n * k
                yield Launch("linears", "head", nbytes, flops)
            else:
                yield from nf4_linears.launches(case.rows, n, k, gpu)
        elif one.name == "delta_down" and step.deltas is not None:
            costs = DeltaCosts(_stack(LAYERS), step.deltas.plan, step.deltas.weights, case.rows, gpu)
            d_in, up = one.shapes[0][-1], next(o for o in operations[at:] if o.name == "delta_up")
            outputs = [shape[-1] for shape in up.shapes[:-UP_TABLES]]
            yield costs.down(d_in, outputs)
            upwards = costs.up(d_in, outputs)
        elif one.name == "delta_up":
            yield upwards
        elif one.name == "embedding":  # of its rows alone
            yield Launch("others", one.name, 4 * case.rows * config.hidden_size)
        else:
            yield Launch("others", one.name, one.nbytes)
