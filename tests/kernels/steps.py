"""Records of a step, filled in by hand, and single phases of it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from brainstacks.kernels.layout import GROUP, LAYER, LINEAR, STEP
from brainstacks.kernels.step import bodies
from brainstacks.kernels.tiles import PANEL

Array = np.ndarray[Any, Any]


class Step:
    """A step with one layer. Fields that name an array are given it, and it is kept.

    Attributes:
        layer, groups, linears: of the tables.
    """

    def __init__(self, *, wide: bool = True, **fields: Any) -> None:
        self.record = np.zeros(1, STEP)
        self.layer, self.groups, self.linears = np.zeros(1, LAYER), np.zeros(5, GROUP), np.zeros(8, LINEAR)
        self._kept: list[Array] = []
        self._arrays: dict[str, Array] = {}
        self._bodies = bodies(wide)
        self.set(layer_table=self.layer, group_table=self.groups, linear_table=self.linears, **fields)
        self.set(order=np.arange(1024), nothing=zeros(1, PANEL))

    def set(self, table: Array | None = None, **fields: Any) -> None:
        """Fields of the step, or of one record of another table."""
        for name, value in fields.items():
            if isinstance(value, np.ndarray):
                self._arrays[name] = value
                value = self.keep(value)
            (self.record if table is None else table)[name] = value

    def keep(self, array: Array) -> int:
        """Its address, for as long as this lives."""
        self._kept.append(array)
        return array.ctypes.data

    def __getitem__(self, name: str) -> Array:
        """The array that a field was given last."""
        return self._arrays[name]

    def run(self, phase: str, index: int, pieces: int) -> None:
        """All pieces of `phase`, in order, as far as `pieces`."""
        body = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(self._bodies[phase])
        for piece in range(pieces):
            body(self.record.ctypes.data, index, piece)


def zeros(rows: int, columns: int, dtype: Any = np.float32) -> Array:
    return np.zeros((rows, columns), dtype)
