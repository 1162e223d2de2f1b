"""One stack as the compiled step multiplies with it: the panels of every round's A, gates and B.

Columns of a round's low-rank space come in units that are chosen together: each expert's, filled up to
whole panels, where the rank is at least a panel; else all experts' at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brainstacks.kernels.deltas import DOWN, LINEARS, UP
from brainstacks.kernels.layout import LINEAR, ROUND
from brainstacks.kernels.products import product_address
from brainstacks.kernels.tiles import CHUNK, PANEL
from brainstacks.layers.packed_stack import PackedStack
from brainstacks.layers.projections import INPUT_GROUPS

Array = np.ndarray[Any, Any]


class DeltaPanels:
    """Args:
    stack: on the CPU.
    blocks: of each input group, how many inputs share a scale; 0 where its products are exact.

    Attributes:
        rounds: `layout.ROUND` [rounds].
        linears: `layout.LINEAR` [layers, groups, rounds, LINEARS]; zeros for a projection without a delta.
    """

    def __init__(self, stack: PackedStack, blocks: Sequence[int]) -> None:
        shape = stack.shape
        whole = shape.rank < PANEL
        self.units = 1 if whole else shape.experts
        self.unit = -(-(shape.columns if whole else shape.rank) // PANEL) * PANEL
        self.columns = self.units * self.unit
        self.experts = shape.experts
        self.rounds = np.zeros(stack.rounds, ROUND)
        for field, value in (
            ("rank", shape.rank), ("experts", shape.experts), ("top_k", shape.top_k),
            ("units", self.units), ("unit", self.unit),
        ):  # fmt: skip
            self.rounds[field] = value
        self.linears = np.zeros((shape.layers, len(INPUT_GROUPS), stack.rounds, LINEARS), LINEAR)
        self._kept: list[Array] = []
        for group, names in enumerate(INPUT_GROUPS):
            present = shape.projections(group)
            if present:
                self._add_group(
                    stack, group, [name if name in present else None for name in names], blocks[group]
                )

    def _add_group(self, stack: PackedStack, group: int, names: Sequence[str | None], block: int) -> None:
        shape = stack.shape
        down = torch.stack([stack.down[layer, group] for layer in range(shape.layers)])  # [L, n, rows, d_in]
        present = [name for name in names if name is not None]
        split = len(present) * shape.columns
        every_a = down[:, :, :split].unflatten(2, (len(present), shape.columns)).unbind(2)
        every_gate = down[:, :, split:].unflatten(2, (len(present), shape.experts)).unbind(2)
        for name, a, gate in zip(present, every_a, every_gate, strict=True):
            at = names.index(name)
            # Gates lie behind A: in its last panel where all experts are one unit, else in one of their own.
            columns = a if self.units == 1 else self._in_units(a, 2)
            self._fill(group, DOWN + at, torch.cat([columns, gate], 2), block, bool(block))
            up = torch.stack([stack.up[layer, name] for layer in range(shape.layers)])  # [L, n, C, d_out]
            self._fill(group, UP + at, self._in_units(up, 2).transpose(2, 3), self.unit, bool(block))

    def _in_units(self, columns: Tensor, dim: int) -> Any:
        """Columns [..., N * r, ...] of all experts -> [..., units * unit, ...], filled up with zeros."""
        each = columns.unflatten(dim, (self.units, -1))
        missing = self.unit - each.shape[dim + 1]
        if missing:
            filling = each.new_zeros(*each.shape[: dim + 1], missing, *each.shape[dim + 2 :])
            each = torch.cat([each, filling], dim + 1)
        return each.flatten(dim, dim + 1)

    def _fill(self, group: int, which: int, values: Tensor, block: int, fast: bool) -> None:
        """Pack values [layers, rounds, d_out, d_in] and say in the table where they are."""
        layers, rounds, d_out, d_in = values.shape
        width = -(-d_in // CHUNK) * CHUNK
        block = block or width
        rows = -(-d_out // PANEL) * PANEL
        padded = values.new_zeros(layers, rounds, rows, width)
        padded[:, :, :d_out, :d_in] = values
        panels, blocks = rows // PANEL, width // block
        scales = np.ones((layers, rounds, panels, blocks, PANEL), np.float32)
        if fast:
            blocked = padded.float().view(layers, rounds, panels, PANEL, blocks, block)
            largest = blocked.abs().amax(-1)
            codes = (blocked * (127.0 / largest.where(largest > 0, 1.0))[..., None]).round().to(torch.int8)
            scales[:] = (largest / 127.0).transpose(-1, -2).numpy()
            fours = codes.view(layers, rounds, panels, PANEL, width // 4, 4)
            kind, packed = "fast_bytes", fours.transpose(3, 4).contiguous().numpy()
        else:
            tall = padded.view(layers, rounds, panels, PANEL, width).transpose(3, 4).contiguous()
            kind = "floats" if tall.dtype == torch.float32 else "halves"
            packed = tall.numpy() if kind == "floats" else tall.view(torch.int16).numpy()
        self._kept += [packed, scales]
        table = self.linears[:, group, :, which]
        offsets = np.arange(layers)[:, None], np.arange(rounds)[None]
        for field, array in (("codes", packed), ("scales", scales)):
            places = (array.strides[i] * offset for i, offset in enumerate(offsets))
            table[field] = array.ctypes.data + sum(places)
            table[f"{field}_step"] = array.strides[2]
        table["product"] = product_address(kind)
        table["panels"], table["blocks"], table["chunks"] = panels, blocks, block // CHUNK
        table["fast"], table["d_in"], table["d_out"] = fast, d_in, d_out
