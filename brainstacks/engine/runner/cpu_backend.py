"""The compiled step: a base and its stacks on the CPU, through `kernels.step`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.engine.runner.batch import StepBatch
from brainstacks.engine.runner.kv_cache import NewCache, VectorCache
from brainstacks.kernels import step as compiled
from brainstacks.kernels.attention import TILE_TOKENS
from brainstacks.kernels.layout import BLOCK, PROJECTIONS, STEP, TILE
from brainstacks.kernels.products import product_address
from brainstacks.kernels.team import Team
from brainstacks.kernels.tiles import PANEL
from brainstacks.kernels.vectors import ISA
from brainstacks.layers.bank import SlotWeights, StackBank
from brainstacks.layers.delta_panels import DeltaPanels
from brainstacks.layers.flat_model import FlatModel, apart
from brainstacks.layers.packed_stack import PackedStack
from brainstacks.layers.panels import aligned_zeros
from brainstacks.layers.slot_table import SlotTable

Array = np.ndarray[Any, Any]

_BASE_ALONE = SlotWeights((), np.zeros(0, np.int32), np.zeros((0, 0), np.float32))


class Phase(NamedTuple):
    """One phase of a step, as `traced` notes it.

    Attributes:
        name: field of `layout.STEP` that says what computes it.
        group: index of a layer's input group, 4 to a layer; the last one is the head.
    """

    name: str
    group: int
    seconds: float


class CpuBackend:
    """Args:
    base: on the CPU, having computed nothing yet.
    new_cache: allocates its keys and values.
    reason: why it was chosen.
    exact: compute with the very values of quantised weights; else with int8 activations, see `FlatModel`.

    Attributes:
        model: the base as it is computed with.

    Raises:
        UnsupportedModel: the compiled step does not know this decoder.
    """

    fixed_shapes = False
    own_threads = True
    asynchronous = False

    def __init__(self, base: BaseModel, new_cache: NewCache, reason: str, *, exact: bool) -> None:
        self._base = base
        self.reason = reason
        self.model = FlatModel(base.model, base.sites, base.blocks, base.head_blocks(), fast=not exact)
        self.name = f"cpu ({ISA.name}, {'exact' if exact else 'int8 activations'})"
        self._embed = base.model.get_input_embeddings()
        self._team = Team(torch.get_num_threads())
        self._scratch = _Scratch()
        model, dims = self.model, self.model.dims
        self._table = SlotTable(model.delta_blocks)
        self.cache = new_cache(VectorCache)
        for layer, (keys, values) in enumerate(zip(self.cache.keys, self.cache.values, strict=True)):
            model.layers[layer]["keys"], model.layers[layer]["values"] = keys.data_ptr(), values.data_ptr()
        self._step = np.zeros(1, STEP)
        self._ones, self._nothing = np.ones(PANEL, np.float32), np.zeros(PANEL, np.float32)
        self._counted = np.zeros(0, np.int64)
        self._bodies = compiled.bodies(base.dtype == torch.float32)
        self._set(
            layers=dims.layers,
            hidden=dims.hidden,
            width=dims.width,
            heads=dims.heads,
            kv_heads=dims.kv_heads,
            dim=dims.dim,
            depth=PANEL * -(-dims.dim // PANEL),
            plain=product_address("floats" if base.dtype == torch.float32 else "halves"),
            ones=self._ones.ctypes.data,
            nothing=self._nothing.ctypes.data,
            threads=torch.get_num_threads(),
            gelu=model.gelu,
            eps=model.eps,
            layer_table=model.layers.ctypes.data,
            group_table=model.groups.ctypes.data,
            linear_table=model.linears.ctypes.data,
            final_norm=model.final_norm,
            middle=dims.layers // 2,
            x_width=dims.inputs,
            y_width=dims.outputs,
            block_count=dims.blocks,
            logits_width=apart(PANEL * -(-dims.vocab // PANEL)),
            **self._bodies,
        )

    def prepare(self, stack: PackedStack) -> None:
        self.panels(stack)

    def lay_out(self, batch: StepBatch, bank: StackBank) -> None:
        pass  # the host would only take from the step in the air what it does ahead

    def panels(self, stack: PackedStack) -> DeltaPanels:
        """`stack` as it is computed with."""
        return self._table.panels(stack)

    def run(self, batch: StepBatch, bank: StackBank) -> Tensor:
        count = len(batch.wanted)
        logits = aligned_zeros((count, int(self._step["logits_width"][0])), np.float32)
        self._set(logits=logits.ctypes.data, mid=0)
        self._run(batch, bank.slot_weights(batch.weights), batch.wanted)
        return torch.from_numpy(logits)[:, : self.model.dims.vocab]

    def hidden_states(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        dims = self.model.dims
        mid, last = (np.empty((len(batch.ids), dims.width), np.float32) for _ in range(2))
        self._set(mid=mid.ctypes.data, last=last.ctypes.data)
        self._run(batch, _BASE_ALONE, np.zeros(0, np.int64))
        return torch.from_numpy(mid)[:, : dims.hidden], torch.from_numpy(last)[:, : dims.hidden]

    def _run(self, batch: StepBatch, used: SlotWeights, wanted: Array) -> None:
        tokens, dims = len(batch.ids), self.model.dims
        scratch = self._scratch
        h = scratch.take("h", np.float32, tokens, dims.width)
        with torch.inference_mode():
            h[:, : dims.hidden] = self._embed(torch.from_numpy(batch.ids)).float().numpy()
        table, count = self._table, len(used.slots)
        table.seat(used.residents)
        rounds = table.rounds[used.slots]
        units, columns, experts, inner, choices = (
            int(rounds[name].max(initial=0)) for name in ("units", "columns", "experts", "inner", "choices")
        )
        low = PROJECTIONS * count * tokens
        cos, sin = self.model.angles(int(batch.positions.max()) + 1)
        tiles = _tiles(batch)
        kv_slots = batch.places * BLOCK + batch.positions % BLOCK
        self._set(
            tokens=tokens,
            positions=batch.positions.ctypes.data,
            kv_slots=kv_slots.ctypes.data,
            cos=cos.ctypes.data,
            sin=sin.ctypes.data,
            reach=cos.shape[1],
            tiles=tiles.ctypes.data,
            tile_count=len(tiles),
            blocks=batch.blocks.ctypes.data,
            block_width=batch.blocks.shape[1],
            wanted=wanted.ctypes.data,
            wanted_count=len(wanted),
            h=h.ctypes.data,
            x=scratch.take("x", np.float32, tokens, dims.inputs).ctypes.data,
            q=scratch.take("q", np.int8, tokens, dims.inputs).ctypes.data,
            scale=scratch.take("scale", np.float32, tokens, dims.blocks).ctypes.data,
            zero=scratch.take("zero", np.int32, tokens, dims.blocks).ctypes.data,
            mass=scratch.take("mass", np.float32, tokens, dims.blocks).ctypes.data,
            y=scratch.take("y", np.float32, tokens, dims.outputs).ctypes.data,
            order=self._order(tokens).ctypes.data,
            rounds=count,
            units=units,
            columns=columns,
            experts=experts,
            slots=used.slots.ctypes.data,
            weights=used.weights.ctypes.data,
            round_table=table.rounds.ctypes.data,
            down_table=table.down.ctypes.data,
            up_table=table.up.ctypes.data,
            choices=scratch.take("choices", np.float32, count * tokens, choices).ctypes.data,
            choice_width=choices,
            gates=scratch.take("gates", np.float32, low, experts).ctypes.data,
            inner=scratch.take("inner", np.float32, low, inner).ctypes.data,
            inner_width=inner,
            low=scratch.take("low", np.int8, low, columns).ctypes.data,
            low_scale=scratch.take("low scale", np.float32, low, units).ctypes.data,
            low_zero=scratch.take("low zero", np.int32, low, units).ctypes.data,
        )
        self._team.drive(int(compiled.drive.address), self._step.ctypes.data)

    @contextmanager
    def traced(self, most: int) -> Iterator[list[Phase]]:
        """Note the first `most` phases of the steps inside, oldest first, in a list that is filled when the
        block ends."""
        found: list[Phase] = []
        with self._team.traced(most) as phases:
            yield found
        names = {address: name for name, address in self._bodies.items()}
        found += [Phase(names[body], index, ns / 1e9) for body, index, ns in phases]

    def _order(self, tokens: int) -> Array:
        """0, 1, 2, ... int64, for all tokens and for all rows of a tile's attention."""
        dims = self.model.dims
        most = max(tokens, TILE_TOKENS * dims.heads // dims.kv_heads)
        if len(self._counted) < most:
            self._counted = np.arange(1 << (most - 1).bit_length())
        return self._counted

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            self._step[name] = value


def _tiles(batch: StepBatch) -> Array:
    """Each completion's tokens, cut into tiles."""
    found = [
        (completion, span.first + at, min(TILE_TOKENS, span.count - at), span.start + at)
        for completion, span in enumerate(batch.spans)
        for at in range(0, span.count, TILE_TOKENS)
    ]
    return np.array(found, TILE)


class _Scratch:
    """Arrays that are kept from step to step, and grow."""

    def __init__(self) -> None:
        self._held: dict[str, Array] = {}

    def take(self, name: str, dtype: Any, rows: int, columns: int) -> Array:
        """[rows, columns], of any content that is finite."""
        size = rows * columns
        if name not in self._held or self._held[name].size < size:
            self._held[name] = aligned_zeros([1 << max(0, size - 1).bit_length()], dtype)
        return self._held[name][:size].reshape(rows, columns)
