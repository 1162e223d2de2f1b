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
from brainstacks.device import is_out_of_memory
from brainstacks.engine.block_manager import blocks_for
from brainstacks.engine.runner import attention
from brainstacks.engine.runner.batch import StepBatch
from brainstacks.engine.runner.cuda_step import CudaStep, Decoder, Room
from brainstacks.engine.runner.kv_cache import PagedCache
from brainstacks.engine.sampling.transfers import select
from brainstacks.errors import ConfigError
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
        rows, context = max(config.max_batch_size, config.max_router_batch), config.max_context
        self._decoder = Decoder.of(base, cache, hooks, rows, context or base.max_context)
        self._config = config
        self._planner = DeltaPlanner()
        self._planned: dict[int, _Planned] = {}  # what was planned last, by the tokens of a block
        self._programs: dict[tuple[int, bool], _Program] = {}  # by rows, and whether there are deltas
        self._laid_out: tuple[StepBatch, _Program] | None = None
        self._graphs: _Graphs | None = None
        if base.device.type == "cuda" and config.cuda_graphs:
            with torch.inference_mode(), torch.cuda.device(base.device):
                self._graphs = _Graphs(base, config.max_batch_size)
                self._capture_all()

    def prepare(self, stack: PackedStack) -> None:
        self._planner.records(stack)

    @torch.inference_mode()
    def lay_out(self, batch: StepBatch, bank: StackBank) -> None:
        self._laid_out = batch, self._filled(batch, bank)

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
            step.send(part.ids)
            found.append(step.states())
        mid, last = (torch.cat(states) for states in zip(*found, strict=True))
        return mid, last

    def _run(self, batch: StepBatch, bank: StackBank) -> Tensor:
        for_, program = self._laid_out or (None, None)
        self._laid_out = None
        if program is None or for_ is not batch:
            program = self._filled(batch, bank)
        program.step.send(batch.ids)
        logits = program.run()
        if batch.decoding == 0:
            return logits
        return select(logits[: len(batch.spans)], batch.wanted.tolist())

    def _filled(self, batch: StepBatch, bank: StackBank) -> _Program:
        """The program for `batch`, which has all that it needs but the ids."""
        decode = batch.decoding > 0
        plan = self._plan(batch, bank, (DECODE if decode else PREFILL).tokens)
        program = self._program(len(batch.spans), plan) if decode else None
        if program is None:
            step = CudaStep(self._decoder, self._exact(batch, plan), InLine())
            program = _Program(step, step.compute)
        program.step.fill(batch, plan)
        return program

    def _plan(self, batch: StepBatch, bank: StackBank, block: int) -> DeltaPlan | None:
        """Of the step's deltas; None for the base alone."""
        last = self._planned.get(block)
        # A composition keeps its mapping, and its stacks, for as long as it lives.
        if last is not None and last.is_of(bank, batch.weights):
            return last.plan
        found = bank.slot_weights(batch.weights)
        plan = self._planner.plan(found, block) if found.residents else None
        self._planned[block] = _Planned(bank, batch.weights, plan)
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
        if plan is not None and (plan.pairs > PAIRS_PER_BLOCK * _blocks(bucket) or plan.gates > GATES):
            return None
        key = bucket, plan is not None
        if key not in self._programs:
            self._programs[key] = self._new_program(*key)
        return self._programs[key]

    def _new_program(self, rows: int, composed: bool) -> _Program:
        blocks = _blocks(rows) if composed else 0
        room = Room(
            decode=True,
            rows=rows,
            tokens=rows,
            wanted=rows,
            table=rows * blocks_for(self._decoder.context) + 1,
            tile=DECODE,
            blocks=blocks,
            pairs=PAIRS_PER_BLOCK * blocks,
            gates=GATES if composed else 0,
            fixed=self._config.deterministic,
        )
        if self._graphs is None:
            step = CudaStep(self._decoder, room, InLine())
            return _Program(step, step.compute)
        step = CudaStep(self._decoder, room, self._graphs.beside)
        return _Program(step, self._graphs.captured(step.compute, rows))

    def _capture_all(self) -> None:
        """Raises ConfigError: the device has no room for it."""
        started = time.perf_counter()
        most = self._config.max_batch_size
        try:
            for rows in reversed(buckets(self._config)):  # the largest first: others use its memory
                for composed in (False, True):
                    self._programs[rows, composed] = self._new_program(rows, composed)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigError(
                f"{self._decoder.base.device} has no room for CUDA graphs of {most} rows; give less to "
                "--max-batch-size, --kv-cache-tokens or --device-stack-bytes, or start with --no-cuda-graphs"
            ) from error
        log.info("%d CUDA graphs captured in %.1f s", len(self._programs), time.perf_counter() - started)


@dataclass(frozen=True)
class _Planned:
    """A plan, and the rows and the bank that it is for."""

    bank: StackBank
    weights: Sequence[Mapping[Any, float]]
    plan: DeltaPlan | None

    def is_of(self, bank: StackBank, weights: Sequence[Mapping[Any, float]]) -> bool:
        """Whether it is the plan of these very mappings."""
        same = self.bank is bank and len(self.weights) == len(weights)
        return same and all(map(is_, self.weights, weights))


@dataclass(frozen=True)
class _Program:
    """Attributes:
    step: whose tensors are filled in before `run`.
    run: gives its logits, which lie where they are until the next run of any program.
    """

    step: CudaStep
    run: Callable[[], Tensor]


class _Graphs:
    """What captured programs have in common: each runs alone.

    Attributes:
        beside: where the first launches of deltas run.
    """

    def __init__(self, base: BaseModel, rows: int) -> None:
        self.beside: Beside = SideStream(base.device)
        # One for all: PyTorch keeps a workspace of cuBLAS's for every stream that products ran on.
        self._stream = torch.cuda.Stream(base.device)
        self._pool: Any = torch.cuda.graph_pool_handle()
        vocab = base.model.get_output_embeddings().out_features
        self._logits = torch.empty(rows, vocab, device=base.device)

    def captured(self, compute: Callable[[], Tensor], rows: int) -> Callable[[], Tensor]:
        """`compute` of so many rows, recorded once and played again."""
        logits = self._logits[:rows]
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):  # what is compiled, allocated or chosen at a first run
            for _ in range(2):
                compute()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on loading stacks meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            logits.copy_(compute())

        def replay() -> Tensor:
            graph.replay()
            return logits

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
