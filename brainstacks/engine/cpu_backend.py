"""The compiled step: a base and its stacks on the CPU, through `kernels.step`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.engine.batch import StepBatch
from brainstacks.engine.kv_cache import PagedCache
from brainstacks.kernels import step as compiled
from brainstacks.kernels.attention import TILE_TOKENS
from brainstacks.kernels.layout import BLOCK, FACTOR, ROUND, STEP, TILE
from brainstacks.kernels.team import Team
from brainstacks.kernels.tiles import ISA, PANEL
from brainstacks.layers.bank import StackBank
from brainstacks.layers.flat_model import FlatModel

Array = np.ndarray[Any, Any]


class CpuBackend:
    """Args:
    base: on the CPU, having computed nothing yet.
    cache: whose keys and values it reads and writes.
    exact: compute with the very values of quantised weights; else with int8 activations, see `FlatModel`.

    Raises:
        UnsupportedModel: the compiled step does not know this decoder.
    """

    fixed_shapes = False
    """A row's result depends on no other row, whatever the shapes."""

    def __init__(self, base: BaseModel, cache: PagedCache, *, exact: bool) -> None:
        self._base, self._cache = base, cache
        self._model = FlatModel(base.model, base.sites, base.blocks, base.head_blocks(), fast=not exact)
        self.name = f"cpu ({ISA.name}, {'exact' if exact else 'int8 activations'})"
        self._embed = base.model.get_input_embeddings()
        self._team = Team(torch.get_num_threads())
        self._scratch = _Scratch()
        self._stacks = _Stacks()
        model, dims = self._model, self._model.dims
        for layer, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
            model.layers[layer]["keys"], model.layers[layer]["values"] = keys.data_ptr(), values.data_ptr()
        self._step = np.zeros(1, STEP)
        bodies = compiled.bodies(base.dtype == torch.float32)
        self._set(
            layers=dims.layers,
            hidden=dims.hidden,
            width=dims.width,
            heads=dims.heads,
            kv_heads=dims.kv_heads,
            dim=dims.dim,
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
            logits_width=PANEL * -(-dims.vocab // PANEL),
            **bodies,
        )

    def run(self, batch: StepBatch, bank: StackBank) -> Tensor:
        count = len(batch.wanted)
        logits = np.empty((count, int(self._step["logits_width"][0])), np.float32)
        self._set(logits=logits.ctypes.data, mid=0)
        self._run(batch, bank, batch.wanted)
        return torch.from_numpy(logits)[:, : self._model.dims.vocab]

    def hidden_states(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        dims = self._model.dims
        mid, last = (np.empty((len(batch.ids), dims.width), np.float32) for _ in range(2))
        self._set(mid=mid.ctypes.data, last=last.ctypes.data)
        self._run(batch, None, np.zeros(0, np.int64))
        return torch.from_numpy(mid)[:, : dims.hidden], torch.from_numpy(last)[:, : dims.hidden]

    def _run(self, batch: StepBatch, bank: StackBank | None, wanted: Array) -> None:
        tokens, dims = len(batch.ids), self._model.dims
        scratch = self._scratch
        h = scratch.take("h", np.float32, tokens, dims.width)
        with torch.inference_mode():
            h[:, : dims.hidden] = self._embed(torch.from_numpy(batch.ids)).float().numpy()
        rounds = self._stacks.bind(batch.weights if bank is not None else (), bank)
        cos, sin = self._model.angles(int(batch.positions.max()) + 1)
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
            rounds=rounds.count,
            columns=rounds.columns,
            experts=rounds.experts,
            round_table=rounds.shapes.ctypes.data,
            factor_table=rounds.factors.ctypes.data,
            weights=rounds.weights.ctypes.data,
            low=scratch.take("low", np.float32, 3 * rounds.count * tokens, rounds.columns).ctypes.data,
            gates=scratch.take("gates", np.float32, 3 * rounds.count * tokens, rounds.experts).ctypes.data,
        )
        self._team.drive(int(compiled.drive.address), self._step.ctypes.data)

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            self._step[name] = value


def _tiles(batch: StepBatch) -> Array:
    """Each sequence's tokens, cut into tiles."""
    found = [
        (sequence, span.first + at, min(TILE_TOKENS, span.count - at), span.start + at)
        for sequence, span in enumerate(batch.spans)
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
            self._held[name] = np.zeros(1 << max(0, size - 1).bit_length(), dtype)
        return self._held[name][:size].reshape(rows, columns)


class _Rounds:
    """What the step reads of the stacks in use.

    Attributes:
        shapes: `layout.ROUND` [rounds]; factors: `layout.FACTOR` [layers, 7, rounds].
        weights: [rounds, T] float32.
    """

    def __init__(self, keys: tuple[Any, ...], bank: StackBank | None) -> None:
        stacks = [bank.stack(key) for key in keys] if bank is not None else []
        self.held = stacks  # what is pointed to stays alive
        self.columns_of = [
            (key, stack.scaling) for key, stack in zip(keys, stacks, strict=True) for _ in range(stack.rounds)
        ]
        self.count = len(self.columns_of)
        shapes = [
            (stack.shape.rank, stack.shape.experts, stack.shape.top_k)
            for stack in stacks
            for _ in range(stack.rounds)
        ]
        self.shapes = np.array(shapes, ROUND)
        self.columns = max((rank * experts for rank, experts, _ in shapes), default=0)
        self.experts = max((experts for _, experts, _ in shapes), default=0)
        self.factors = (
            np.ascontiguousarray(np.concatenate([stack.factors for stack in stacks], axis=2))
            if stacks
            else np.zeros(0, FACTOR)
        )
        self.weights = np.zeros((0, 0), np.float32)


class _Stacks:
    """The tables of the last composition, which most often is the next one's too."""

    def __init__(self) -> None:
        self._keys: tuple[Any, ...] = ()
        self._rounds = _Rounds((), None)

    def bind(self, weights: Sequence[Mapping[Any, float]], bank: StackBank | None) -> _Rounds:
        """For tokens with these weights (key -> weight). Raises KeyError: one is not resident."""
        used = {
            key for row in {id(row): row for row in weights}.values() for key, w in row.items() if w != 0.0
        }
        keys = tuple(sorted(used, key=str))  # sums are added in one order, whatever else is in the batch
        if keys != self._keys or any(
            bank is None or bank.stack(k) is not s for k, s in zip(keys, self._rounds.held, strict=True)
        ):
            self._keys, self._rounds = keys, _Rounds(keys, bank)
        rounds = self._rounds
        columns: dict[int, Array] = {}
        rounds.weights = np.empty((rounds.count, len(weights)), np.float32)
        for t, row in enumerate(weights):
            column = columns.get(id(row))
            if column is None:
                column = np.array(
                    [row.get(key, 0.0) * scaling for key, scaling in rounds.columns_of], np.float32
                )
                columns[id(row)] = column
            rounds.weights[:, t] = column
        return rounds
