"""The compiled step: a base and its stacks on the CPU, through `kernels.step`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.engine.batch import StepBatch
from brainstacks.engine.kv_cache import PagedCache
from brainstacks.kernels import step as compiled
from brainstacks.kernels.attention import TILE_TOKENS
from brainstacks.kernels.deltas import PROJECTIONS
from brainstacks.kernels.layout import BLOCK, DOWN, ROUND, STEP, TILE, UP
from brainstacks.kernels.products import product_address
from brainstacks.kernels.team import Team
from brainstacks.kernels.tiles import PANEL
from brainstacks.kernels.vectors import ISA
from brainstacks.layers.bank import StackBank
from brainstacks.layers.delta_panels import DeltaPanels
from brainstacks.layers.flat_model import FlatModel, apart
from brainstacks.layers.packed_stack import PackedStack
from brainstacks.layers.panels import aligned_zeros

Array = np.ndarray[Any, Any]


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
    cache: whose keys and values it reads and writes.
    exact: compute with the very values of quantised weights; else with int8 activations, see `FlatModel`.

    Attributes:
        model: the base as it is computed with.

    Raises:
        UnsupportedModel: the compiled step does not know this decoder.
    """

    fixed_shapes = False
    own_threads = True

    def __init__(self, base: BaseModel, cache: PagedCache, *, exact: bool) -> None:
        self._base, self._cache = base, cache
        self.model = FlatModel(base.model, base.sites, base.blocks, base.head_blocks(), fast=not exact)
        self.name = f"cpu ({ISA.name}, {'exact' if exact else 'int8 activations'})"
        self._embed = base.model.get_input_embeddings()
        self._team = Team(torch.get_num_threads())
        self._scratch = _Scratch()
        model, dims = self.model, self.model.dims
        self._stacks = _Stacks(model.delta_blocks)
        for layer, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
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

    def panels(self, stack: PackedStack) -> DeltaPanels:
        """`stack` as it is computed with."""
        return self._stacks.panels(stack)

    def run(self, batch: StepBatch, bank: StackBank) -> Tensor:
        count = len(batch.wanted)
        logits = aligned_zeros((count, int(self._step["logits_width"][0])), np.float32)
        self._set(logits=logits.ctypes.data, mid=0)
        self._run(batch, bank, batch.wanted)
        return torch.from_numpy(logits)[:, : self.model.dims.vocab]

    def hidden_states(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        dims = self.model.dims
        mid, last = (np.empty((len(batch.ids), dims.width), np.float32) for _ in range(2))
        self._set(mid=mid.ctypes.data, last=last.ctypes.data)
        self._run(batch, None, np.zeros(0, np.int64))
        return torch.from_numpy(mid)[:, : dims.hidden], torch.from_numpy(last)[:, : dims.hidden]

    def _run(self, batch: StepBatch, bank: StackBank | None, wanted: Array) -> None:
        tokens, dims = len(batch.ids), self.model.dims
        scratch = self._scratch
        h = scratch.take("h", np.float32, tokens, dims.width)
        with torch.inference_mode():
            h[:, : dims.hidden] = self._embed(torch.from_numpy(batch.ids)).float().numpy()
        rounds = self._stacks.bind(batch.weights, bank) if bank is not None else _Rounds({}, {})
        weights = rounds.weights(batch.weights)
        low = PROJECTIONS * rounds.count * tokens
        cos, sin = self.model.angles(int(batch.positions.max()) + 1)
        tiles = _tiles(batch)
        slots = batch.places * BLOCK + batch.positions % BLOCK
        self._set(
            tokens=tokens,
            positions=batch.positions.ctypes.data,
            slots=slots.ctypes.data,
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
            rounds=rounds.count,
            units=rounds.units,
            columns=rounds.columns,
            experts=rounds.experts,
            round_table=rounds.shapes.ctypes.data,
            down_table=rounds.down.ctypes.data,
            up_table=rounds.up.ctypes.data,
            weights=weights.ctypes.data,
            choices=scratch.take("choices", np.float32, rounds.count * tokens, rounds.choices).ctypes.data,
            choice_width=rounds.choices,
            gates=scratch.take("gates", np.float32, low, rounds.experts).ctypes.data,
            inner=scratch.take("inner", np.float32, low, rounds.inner).ctypes.data,
            inner_width=rounds.inner,
            low=scratch.take("low", np.int8, low, rounds.columns).ctypes.data,
            low_scale=scratch.take("low scale", np.float32, low, rounds.units).ctypes.data,
            low_zero=scratch.take("low zero", np.int32, low, rounds.units).ctypes.data,
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


class _Rounds:
    """What the step reads of the stacks of a composition.

    Attributes:
        shapes, down, up: the tables of its stacks, see `DeltaPanels`, along the rounds.
        units, columns, experts, inner, choices: most of a round.
    """

    def __init__(self, panels: Mapping[Any, DeltaPanels], scalings: Mapping[Any, float]) -> None:
        self.panels = panels  # what is pointed to stays alive
        found = list(panels.values())
        self._columns = [(key, scalings[key]) for key, one in panels.items() for _ in one.rounds]
        self.count = len(self._columns)
        self.units, self.columns, self.experts, self.inner, self.choices = (
            max((getattr(one, name) for one in found), default=0)
            for name in ("units", "columns", "experts", "inner", "choices")
        )
        self.shapes = np.concatenate([np.zeros(0, ROUND), *(one.rounds for one in found)])
        self.down, self.up = np.zeros(0, DOWN), np.zeros(0, UP)
        if found:
            self.down = np.ascontiguousarray(np.concatenate([one.down for one in found], axis=1))
            self.up = np.ascontiguousarray(np.concatenate([one.up for one in found], axis=1))

    def weights(self, rows: Sequence[Mapping[Any, float]]) -> Array:
        """w * s of every round and token, [rounds, T] float32; neighbours often share a mapping."""
        columns: dict[int, list[float]] = {}
        for row in rows:
            if id(row) not in columns:
                columns[id(row)] = [row.get(key, 0.0) * scaling for key, scaling in self._columns]
        table = np.array([columns[id(row)] for row in rows], np.float32)
        return np.ascontiguousarray(table.T)


class _Stacks:
    """Panels of the stacks; and the tables of the last composition, most often the next one's too."""

    def __init__(self, blocks: Sequence[int]) -> None:
        self._blocks = blocks
        self._panels: WeakKeyDictionary[PackedStack, DeltaPanels] = WeakKeyDictionary()
        self._last: tuple[tuple[Any, ...], _Rounds] = ((), _Rounds({}, {}))

    def panels(self, stack: PackedStack) -> DeltaPanels:
        """Its panels; made once, by whoever asks first."""
        found = self._panels.get(stack)
        if found is None:
            found = self._panels[stack] = DeltaPanels(stack, self._blocks)
        return found

    def bind(self, weights: Sequence[Mapping[Any, float]], bank: StackBank) -> _Rounds:
        """For tokens with these weights (key -> weight). Raises KeyError: one is not resident."""
        distinct = {id(row): row for row in weights}.values()
        used = {key for row in distinct for key, weight in row.items() if weight != 0.0}
        # In one order, whatever else is in the batch: so are sums.
        stacks = {key: bank.stack(key) for key in sorted(used, key=str)}
        name = tuple((key, id(stack)) for key, stack in stacks.items())
        if name != self._last[0]:
            panels = {key: self.panels(stack) for key, stack in stacks.items()}
            self._last = (name, _Rounds(panels, {key: stack.scaling for key, stack in stacks.items()}))
        return self._last[1]
