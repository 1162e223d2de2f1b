"""One stack as the compiled step multiplies with it: the panels of every round's A, gates and B.

Columns of a round's low-rank space come in units that are chosen together: each expert's, where there are
several and the rank is at least half a panel; else all experts' at once, whose gates lie behind A in the same
panels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brainstacks.kernels.columns import columns_address
from brainstacks.kernels.layout import DOWN, GATES, LINEARS, PROJECTIONS, ROUND, UP
from brainstacks.kernels.products import product_address
from brainstacks.kernels.tiles import CHUNK, PANEL
from brainstacks.layers.packed_stack import PackedStack
from brainstacks.layers.panels import LARGEST, Memory, panel_bytes
from brainstacks.layers.projections import INPUT_GROUPS

Array = np.ndarray[Any, Any]


class DeltaPanels:
    """Args:
    stack: on the CPU.
    blocks: of each input group, how many inputs share a scale; 0 where its products are exact.

    Attributes:
        rounds: `layout.ROUND` [rounds].
        down: `layout.DOWN` [rounds, groups, LINEARS]; zeros for a projection without a delta.
        up: `layout.UP` [rounds, groups, PROJECTIONS].
    """

    def __init__(self, stack: PackedStack, blocks: Sequence[int]) -> None:
        shape = stack.shape
        self.layers = shape.layers
        self.whole = shape.experts == 1 or shape.rank < PANEL // 2
        self.units = 1 if self.whole else shape.experts
        columns = shape.columns // self.units
        unit = _filled(columns, 4)
        panels = _filled(columns + shape.experts if self.whole else columns, PANEL) // PANEL
        self.rounds = np.zeros(stack.rounds, ROUND)
        for field, value in (
            ("rank", shape.rank), ("experts", shape.experts), ("top_k", shape.top_k),
            ("units", self.units), ("unit", unit), ("panels", panels),
            ("columns", self.units * unit), ("inner", self.units * panels * PANEL),
            ("choices", 0 if self.whole else _filled(PROJECTIONS * shape.experts, PANEL)),
        ):  # fmt: skip
            self.rounds[field] = value
        self.down = np.zeros((stack.rounds, len(INPUT_GROUPS), LINEARS), DOWN)
        self.up = np.zeros((stack.rounds, len(INPUT_GROUPS), PROJECTIONS), UP)
        self._memory = Memory()
        for group, names in enumerate(INPUT_GROUPS):
            present = shape.projections(group)
            if present:
                self._add_group(
                    stack, group, [name if name in present else None for name in names], blocks[group]
                )

    @property
    def nbytes(self) -> tuple[int, int]:
        """That a step reads: always, and of all experts beyond that."""
        down = [panel_bytes(part) for part in (self.down[..., GATES], self.down[..., :GATES])]
        up = int((self.units * self.up["unit_step"]).sum())
        always, chosen = down[0], down[1] + up
        if self.whole:
            always, chosen = always + chosen, 0
        return self.layers * always, self.layers * chosen

    def _add_group(self, stack: PackedStack, group: int, names: Sequence[str | None], block: int) -> None:
        shape = stack.shape
        down = torch.stack([stack.down[layer, group] for layer in range(shape.layers)])  # [L, n, rows, d_in]
        present = [name for name in names if name is not None]
        split = len(present) * shape.columns
        every_a = down[:, :, :split].unflatten(2, (len(present), shape.columns)).unbind(2)
        every_gate = down[:, :, split:].unflatten(2, (len(present), shape.experts)).unbind(2)
        unit, panels = int(self.rounds["unit"][0]), int(self.rounds["panels"][0])
        gates = [torch.zeros_like(every_gate[0])] * len(names)
        for name, a, gate in zip(present, every_a, every_gate, strict=True):
            at = names.index(name)
            gates[at] = gate
            rows = torch.cat([a, gate], 2) if self.whole else self._in_units(a, 2, panels * PANEL)
            self._add_down(group, at, rows, block)
            up = torch.stack([stack.up[layer, name] for layer in range(shape.layers)])  # [L, n, C, d_out]
            self._add_up(group, at, self._in_units(up, 2, unit).unflatten(2, (self.units, unit)), bool(block))
        if not self.whole:
            self._add_down(group, GATES, torch.cat(gates, 2), block)

    def _in_units(self, columns: Tensor, dim: int, unit: int) -> Tensor:
        """Columns [..., N * r, ...] of all experts -> [..., units * unit, ...], filled up with zeros."""
        each = columns.unflatten(dim, (self.units, -1))
        return _padded(each, dim + 1, unit).flatten(dim, dim + 1)

    def _add_down(self, group: int, which: int, values: Tensor, block: int) -> None:
        """Pack values [layers, rounds, rows, d_in] and say in the table where they are."""
        width = _filled(values.shape[3], CHUNK)
        fast, block = bool(block), block or width
        padded = _padded(_padded(values, 2, _filled(values.shape[2], PANEL)), 3, width)
        panelled = padded.unflatten(2, (-1, PANEL))  # [layers, rounds, panels, 16, d_in]
        layers, rounds, panels = panelled.shape[:3]
        scales = np.ones((layers, rounds, panels, width // block, PANEL), np.float32)
        if fast:
            codes, found = _rounded(panelled.unflatten(4, (-1, block)))
            scales[:] = found.transpose(-1, -2).numpy()
            packed = codes.flatten(4).unflatten(4, (-1, 4)).transpose(3, 4)
        else:
            packed = panelled.transpose(3, 4)
        kind, codes_ = _stored(packed, fast)
        table = self.down[:, group, which]
        for field, array in (("codes", self._memory.keep(codes_)), ("scales", self._memory.keep(scales))):
            table[field] = _addresses(array)
            table[f"{field}_layer"], table[f"{field}_step"] = array.strides[0], array.strides[2]
        table["product"] = product_address(kind)
        table["panels"], table["blocks"], table["chunks"] = panels, width // block, block // CHUNK
        table["fast"] = fast

    def _add_up(self, group: int, which: int, values: Tensor, fast: bool) -> None:
        """Pack values [layers, rounds, units, unit, d_out] and say in the table where they are."""
        panelled = _padded(values, 4, _filled(values.shape[4], PANEL)).unflatten(4, (-1, PANEL))
        panelled = panelled.permute(0, 1, 2, 4, 3, 5)  # [layers, rounds, units, panels, unit, 16]
        if fast:
            codes, scales = _rounded(panelled.transpose(4, 5), torch.bfloat16)
            panelled = codes.unflatten(5, (-1, 4)).transpose(4, 5)
        kind, packed = _stored(panelled, fast)
        table = self.up[:, group, which]
        table["product"], table["fast"] = columns_address(kind), fast
        table["panel_step"] = packed.strides[3]
        packed = packed.reshape(*packed.shape[:3], -1)  # [layers, rounds, units, ...]
        if fast:
            table["scales"] = packed.shape[3]
            halves = scales.contiguous().flatten(3).view(torch.int8).numpy()
            packed = np.concatenate([packed, halves], 3)
        packed = self._memory.keep(packed)
        table["weights"] = _addresses(packed)
        table["layer_step"], _, table["unit_step"] = packed.strides[:3]


def _addresses(array: Array) -> Array:
    """Of array[0, round], [rounds]."""
    return np.asarray(array.ctypes.data + array.strides[1] * np.arange(array.shape[1]))


def _rounded(values: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Values [..., n] as int8 and their scales [...] of `dtype`."""
    scales = (values.float().abs().amax(-1) / LARGEST).to(dtype)
    divisors = scales.float().where(scales > 0, 1.0)[..., None]
    return (values.float() / divisors).round().clamp(-LARGEST, LARGEST).to(torch.int8), scales


def _stored(values: Tensor, fast: bool) -> tuple[str, Array]:
    """The kind of panels that hold `values`, and those in memory."""
    values = values.contiguous()
    if fast:
        return "fast_bytes", values.numpy()
    if values.dtype == torch.float32:
        return "floats", values.numpy()
    return "halves", values.view(torch.int16).numpy()


def _padded(values: Tensor, dim: int, size: int) -> Tensor:
    """Filled up with zeros to `size` along `dim`."""
    missing = size - values.shape[dim]
    if not missing:
        return values
    return torch.cat([values, values.new_zeros(*values.shape[:dim], missing, *values.shape[dim + 1 :])], dim)


def _filled(count: int, whole: int) -> int:
    return -(-count // whole) * whole
