"""The step on a GPU: transformers' own decoder over Triton kernels, decoded by CUDA graphs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.engine.runner import attention
from brainstacks.engine.runner.batch import StepBatch
from brainstacks.engine.runner.cuda_step import CudaStep, Decoder, Room
from brainstacks.engine.runner.kv_cache import PagedCache
from brainstacks.engine.sampling.transfers import select
from brainstacks.gpu_kernels.deltas import DECODE, PREFILL
from brainstacks.layers.bank import StackBank
from brainstacks.layers.delta_plan import GATES, DeltaPlan, DeltaPlanner
from brainstacks.layers.group_hooks import GroupHooks
from brainstacks.layers.packed_stack import PackedStack
from brainstacks.layers.staged_deltas import Beside, InLine, SideStream

log = logging.getLogger(__name__)

PAIRS_PER_BLOCK = 64
"""Slots that a block of decode rows may use in a captured step."""


class CudaBackend:
    """Decode rows are computed by one program for so many rows (`buckets`), captured in a CUDA graph, of
    whatever compositions; other rows by the same operations, each once.

    Args:
        base: its attention implementation is switched to the paged cache's.
        cache: whose keys and values it reads and writes.
        reason: why it was chosen.
        config: `cuda_graphs` captures; else each step enqueues the operations anew.
    """

    asynchronous = True
    fixed_shapes = True
    own_threads = False

    def __init__(self, base: BaseModel, cache: PagedCache, reason: str, config: EngineConfig) -> None:
        attention.register()
        base.model.set_attn_implementation(attention.IMPLEMENTATION)
        self.name, self.reason = f"cuda ({base.device})", reason
        hooks = GroupHooks(base.sites)
        hooks.attach()
        self.cache = cache
        self._decoder = Decoder.of(base, cache, hooks, max(config.max_batch_size, config.max_router_batch))
        self._config = config
        self._planner = DeltaPlanner()
        self._planned = _Planned()
        self._on_device = base.device.type == "cuda"
        self._capture = self._on_device and config.cuda_graphs
        self._beside: Beside = SideStream(base.device) if self._capture else InLine()
        self._programs: dict[tuple[int, int], _Program] = {}
        self._pool: Any = torch.cuda.graph_pool_handle() if self._capture else None
        if self._capture:
            with torch.inference_mode(), torch.cuda.device(base.device):
                self._capture_all()

    def prepare(self, stack: PackedStack) -> None:
        self._planner.records(stack)

    @torch.inference_mode()
    def run(self, batch: StepBatch, bank: StackBank) -> Tensor:
        found = [self._run(part, bank) for part in batch.split()]
        return found[0] if len(found) == 1 else torch.cat(found)

    @torch.inference_mode()
    def hidden_states(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        found = []
        for part in batch.split():
            step = CudaStep(self._decoder, self._exact(part, None), InLine())
            step.fill(part, None)
            found.append(step.states())
        mid, last = (torch.cat(states) for states in zip(*found, strict=True))
        return mid, last

    def _run(self, batch: StepBatch, bank: StackBank) -> Tensor:
        decode = batch.decoding > 0
        plan = self._plan(batch, bank, (DECODE if decode else PREFILL).tokens)
        program = self._program(len(batch.spans), plan) if decode else None
        if program is None:
            step = CudaStep(self._decoder, self._exact(batch, plan), InLine())
            step.fill(batch, plan)
            logits = step.compute()
        else:
            program.step.fill(batch, plan)
            logits = program.run()
        if not decode:
            return logits
        return select(logits[: len(batch.spans)], batch.wanted.tolist())

    def _plan(self, batch: StepBatch, bank: StackBank, block: int) -> DeltaPlan | None:
        """Of the step's deltas; None for the base alone."""
        last = self._planned
        # A composition keeps its mapping, and its stacks, for as long as it lives.
        same = last.of is bank and last.block == block and len(last.weights) == len(batch.weights)
        if same and all(map(is_, last.weights, batch.weights)):
            return last.plan
        found = bank.slot_weights(batch.weights)
        plan = self._planner.plan(found, block) if found.residents else None
        self._planned = _Planned(bank, block, batch.weights, plan)
        return plan

    # --- rooms and programs -----------------------------------------------------------------------

    def _exact(self, batch: StepBatch, plan: DeltaPlan | None) -> Room:
        """For this batch and no more."""
        decode = batch.decoding > 0
        return Room(
            decode=decode,
            rows=len(batch.spans),
            tokens=len(batch.ids),
            wanted=len(batch.wanted),
            table=batch.blocks.size + 1,
            tile=DECODE if decode else PREFILL,
            blocks=plan.blocks if plan else 0,
            pairs=plan.pairs if plan else 0,
            gates=plan.gates if plan else 0,
            fixed=self._config.deterministic,
        )

    def _program(self, rows: int, plan: DeltaPlan | None) -> _Program | None:
        """The program for so many rows and these deltas; None where no program has room for them."""
        bucket = next(size for size in buckets(self._config) if size >= rows)
        if plan is not None and plan.pairs > PAIRS_PER_BLOCK * _blocks(bucket):
            return None
        key = bucket, plan.gates if plan else 0
        if key not in self._programs:
            self._programs[key] = self._new_program(*key)
        return self._programs[key]

    def _new_program(self, rows: int, gates: int) -> _Program:
        blocks = _blocks(rows) if gates else 0
        context = self._config.max_context or self._decoder.base.max_context
        room = Room(
            decode=True,
            rows=rows,
            tokens=rows,
            wanted=rows,
            table=rows * -(-context // 16) + 1,
            tile=DECODE,
            blocks=blocks,
            pairs=PAIRS_PER_BLOCK * blocks,
            gates=gates,
            fixed=self._config.deterministic,
        )
        return _Program(CudaStep(self._decoder, room, self._beside), self._pool)

    def _capture_all(self) -> None:
        started = time.perf_counter()
        for rows in sorted(buckets(self._config), reverse=True):  # the largest first: others use its memory
            for gates in (0, GATES):
                self._programs[rows, gates] = self._new_program(rows, gates)
        log.info("%d CUDA graphs captured in %.1f s", len(self._programs), time.perf_counter() - started)


@dataclass(frozen=True)
class _Planned:
    """What was planned last, and for which rows of which bank."""

    of: StackBank | None = None
    block: int = 0
    weights: Sequence[Mapping[Any, float]] = ()
    plan: DeltaPlan | None = None


class _Program:
    """A step, captured where there is a pool for graphs."""

    def __init__(self, step: CudaStep, pool: Any) -> None:
        self.step = step
        self.run: Callable[[], Tensor] = step.compute if pool is None else _captured(step.compute, pool)


def _captured(compute: Callable[[], Tensor], pool: Any) -> Callable[[], Tensor]:
    """`compute`, recorded once and played again; its result lies where it lay before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is compiled, allocated or chosen at a first run
        for _ in range(2):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads go on loading stacks meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = compute()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def buckets(config: EngineConfig) -> list[int]:
    """Numbers of decode rows that there are programs for; deterministic, one: no row may decide a shape."""
    most = config.max_batch_size
    if config.deterministic:
        return [most]
    return [size for size in (1, 2, 4, *range(8, most, 8)) if size < most] + [most]


def _blocks(rows: int) -> int:
    """That decode rows are cut into at most."""
    return -(-rows // DECODE.tokens)
