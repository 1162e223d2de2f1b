"""A bank as the compiled step reads it: the records of every round, by slot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np

from brainstacks.kernels.layout import DOWN, GROUPS, LINEARS, PROJECTIONS, ROUND, UP
from brainstacks.layers.bank import Resident
from brainstacks.layers.delta_panels import DeltaPanels
from brainstacks.layers.packed_stack import PackedStack

Array = np.ndarray[Any, Any]


class SlotTable:
    """Args:
    blocks: see `DeltaPanels`.

    Attributes:
        rounds, down, up: the records of `DeltaPanels`, by slot. They move when there are more slots.
    """

    def __init__(self, blocks: Sequence[int]) -> None:
        self.rounds = np.zeros(0, ROUND)
        self.down = np.zeros((0, GROUPS, LINEARS), DOWN)
        self.up = np.zeros((0, GROUPS, PROJECTIONS), UP)
        self._blocks = blocks
        self._panels: WeakKeyDictionary[PackedStack, DeltaPanels] = WeakKeyDictionary()
        self._seated: WeakValueDictionary[int, Resident] = WeakValueDictionary()  # by its first slot

    def panels(self, stack: PackedStack) -> DeltaPanels:
        """`stack` as it is computed with; made once, by whoever asks first."""
        found = self._panels.get(stack)
        if found is None:
            found = self._panels[stack] = DeltaPanels(stack, self._blocks)
        return found

    def seat(self, residents: Iterable[Resident]) -> None:
        """Have the records of these; called between steps."""
        for resident in residents:
            first, slots = resident.slots[0], np.array(resident.slots)
            if self._seated.get(first) is resident:
                continue
            self._grow(int(slots.max()) + 1)
            panels = self.panels(resident.stack)
            self.rounds[slots], self.down[slots], self.up[slots] = panels.rounds, panels.down, panels.up
            for slot in resident.slots:  # of another bank perhaps, whose stacks are still there
                self._seated.pop(slot, None)
            self._seated[first] = resident

    def _grow(self, slots: int) -> None:
        if slots > len(self.rounds):
            self.rounds, self.down, self.up = (
                np.concatenate([held, np.zeros((slots, *held.shape[1:]), held.dtype)])
                for held in (self.rounds, self.down, self.up)
            )
