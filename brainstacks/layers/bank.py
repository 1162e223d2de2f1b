"""The stacks on the device, each of their rounds in a slot, and the deltas of batches composed from some.

Every stack is one allocation that never moves, or one for each part of a base on several devices: adding or
removing one touches no other, and a step that computes meanwhile sees nothing of it. What changes from step
to step is a table of the slots in use and a weight for each of them and each row; only those are computed,
and for the rows that use them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from brainstacks.device_map import Part
from brainstacks.layers.delta import gated_hidden
from brainstacks.layers.hooks import Correction, DeltaSource, LowRank
from brainstacks.layers.packed_stack import PackedStack, StackTensors
from brainstacks.layers.transfer import Transfer

Key = Hashable
"""Identity of one stack version, e.g. `("math", 3)`. Weights are bound to it, never to a position."""


@dataclass(frozen=True)
class Resident:
    """A stack on the device.

    Attributes:
        slots: of its rounds; another stack gets them once it is gone.
    """

    stack: PackedStack
    slots: tuple[int, ...]


@dataclass(frozen=True)
class SlotWeights:
    """What a step reads of a bank.

    Attributes:
        residents: the stacks that some row uses, in the order in which their deltas are added.
        slots: int32 [S], of all rounds of these.
        weights: float32 [rows, S], w * s of each of those rounds; 0 where a row does not use it.
    """

    residents: tuple[Resident, ...]
    slots: NDArray[np.int32]
    weights: NDArray[np.float32]


class StackBank:
    """Resident stacks on one device, or on those of a base's parts, in one dtype.

    One thread at a time puts and removes; any number may place and bind at the same time.

    Args:
        device, dtype: where the deltas are computed, and in what; those of the base's activations.
        page_locked: most bytes of host memory that a GPU copies from by itself; see `transfer`.
        parts: of the base, where it has several; `device` is then the first's.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype, page_locked: int = 0, parts: Sequence[Part] = ()
    ) -> None:
        self.device = device
        self.dtype = dtype
        self._parts = tuple(parts)
        devices = [part.device for part in parts] or [device]
        self._transfers = [Transfer.to(one, page_locked) for one in devices]
        self._residents: Mapping[Key, Resident] = {}
        self._free: list[int] = []  # slots below `_fresh`, a heap
        self._fresh = 0
        self._prepare: Callable[[PackedStack], object] = lambda stack: None
        self._make_room: Callable[[], bool] = lambda: False

    def prepare_with(self, prepare: Callable[[PackedStack], object]) -> None:
        """Call `prepare` with every stack that is resident, and with each further one before it is."""
        self._prepare = prepare
        for resident in self._residents.values():
            prepare(resident.stack)

    def make_room_with(self, make_room: Callable[[], bool]) -> None:
        """Call `make_room` where the device has none for a stack; it says whether it has given some up."""
        self._make_room = make_room

    @property
    def keys(self) -> tuple[Key, ...]:
        return tuple(self._residents)

    @property
    def nbytes(self) -> int:
        """Bytes allocated on the device."""
        return sum(resident.stack.nbytes for resident in self._residents.values())

    def pack(self, stack: StackTensors | PackedStack) -> PackedStack:
        """`stack` in host memory, as it is placed with the least work; a packed one is itself."""
        if isinstance(stack, PackedStack):
            return stack
        return PackedStack.pack(stack, self.dtype, self._transfers[0].host_memory)

    def place(self, stack: StackTensors | PackedStack) -> PackedStack:
        """`stack` on the device, ready to be computed with; a packed one that is there already is itself.

        Raises:
            torch.OutOfMemoryError: no room.
        """
        packed = self.pack(stack)
        try:
            return self._copied(packed)
        except torch.OutOfMemoryError:
            if not self._make_room():
                raise
        return self._copied(packed)

    def _copied(self, packed: PackedStack) -> PackedStack:
        parts = self._parts or [Part(self.device, range(packed.shape.layers))]
        with ExitStack() as copies:
            arrivals = [copies.enter_context(transfer.copying()) for transfer in self._transfers]
            there = packed.to(parts, self.dtype, arrivals)
            self._prepare(there)
        return there

    def put(self, key: Key, placed: PackedStack) -> None:
        """Make what `place` gave resident under `key`. Raises KeyError: `key` is resident already."""
        if key in self._residents:
            raise KeyError(f"{key!r} is resident already")
        slots = tuple(self._next_slot() for _ in range(placed.rounds))
        self._residents = {**self._residents, key: Resident(placed, slots)}

    def add(self, key: Key, stack: StackTensors | PackedStack) -> None:
        """`put` what `place` gives, and raise as they do; nothing has changed then."""
        self.put(key, self.place(stack))

    def remove(self, key: Key) -> None:
        """Give up the slots and the memory of `key`, once no step uses it any more.

        Raises:
            KeyError: `key` is not resident.
        """
        resident = self.resident(key)
        self._residents = {other: r for other, r in self._residents.items() if other != key}
        for slot in resident.slots:
            heappush(self._free, slot)

    def resident(self, key: Key) -> Resident:
        """Raises KeyError: `key` is not resident."""
        if key not in self._residents:
            raise KeyError(f"{key!r} is not resident; resident are {self.keys}")
        return self._residents[key]

    def slot_weights(self, weights: Sequence[Mapping[Any, float]]) -> SlotWeights:
        """For a batch whose row i is composed by `weights[i]` (key -> weight); rows often share a mapping.
        What the current stream is given from now on may read these stacks.

        Raises:
            KeyError: a weight is not 0 for a key that is not resident.
        """
        distinct = {id(row): row for row in weights}
        used = {key for row in distinct.values() for key, weight in row.items() if weight != 0.0}
        # Sums are added in one order, whatever else is in the batch.
        residents = {key: self.resident(key) for key in sorted(used, key=str)}
        for resident in residents.values():
            resident.stack.use()
        columns = [(key, r.stack.scaling) for key, r in residents.items() for _ in r.slots]
        lines = {
            name: [row.get(key, 0.0) * scaling for key, scaling in columns] for name, row in distinct.items()
        }
        return SlotWeights(
            residents=tuple(residents.values()),
            slots=np.array([slot for r in residents.values() for slot in r.slots], np.int32),
            weights=np.array([lines[id(row)] for row in weights], np.float32),
        )

    def bind(self, weights: Sequence[Mapping[Any, float]], *, apart: bool = False) -> BoundBank:
        """The deltas of a batch as a `DeltaSource`, see `hooks`.

        Args:
            weights: key -> weight of each row; of a batch that is one packed row [1, T], of each token; a
                single mapping is that of all rows.
            apart: compute each stack for the rows that use it and no others, without gradients; else for
                all, so that weights decide no shape.

        Raises:
            KeyError: a weight is not 0 for a key that is not resident.
        """
        found = self.slot_weights(weights)
        bound, first = [], 0
        for resident in found.residents:
            of_stack = found.weights[:, first : first + resident.stack.rounds, None, None]
            first += resident.stack.rounds
            if apart and not of_stack.any():
                continue  # its weights are too small for float32
            rows = _rows(of_stack) if apart else None
            on_device = torch.from_numpy(of_stack if rows is None else of_stack[rows])[:, None]
            bound.append(
                BoundStack(
                    resident.stack,
                    on_device.to(self.device, non_blocking=True),
                    len(weights),
                    torch.from_numpy(rows).to(self.device) if isinstance(rows, np.ndarray) else rows,
                )
            )
        return BoundBank(tuple(bound))

    def _next_slot(self) -> int:
        if self._free:
            return heappop(self._free)
        self._fresh += 1
        return self._fresh - 1


def _rows(weights: NDArray[np.float32]) -> slice | NDArray[np.int64]:
    """The rows with a weight that is not 0: neighbours as a slice, which copies nothing."""
    rows = np.flatnonzero(weights.any((1, 2, 3)))
    return rows if rows[-1] - rows[0] + 1 > len(rows) else slice(rows[0], rows[-1] + 1)


@dataclass(frozen=True)
class BoundStack:
    """A stack and its weights in one batch.

    Attributes:
        weights: [rows, 1 or tokens, rounds, 1, 1] float32, w * s.
        count: rows of the batch, which is seen as [count, tokens, d].
        rows: those that it is computed for; None for all.
    """

    stack: PackedStack
    weights: Tensor
    count: int
    rows: slice | Tensor | None
    _copies: dict[torch.device, tuple[Tensor, slice | Tensor | None]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def on(self, responses: Tensor) -> BoundStack:
        """With weights [B, T, ...] that are 0 where it does not act; see `DeltaSource.on`."""
        if self.stack.applies == "everywhere":
            return self
        return replace(self, weights=self.weights * responses[..., None, None, None], count=len(responses))

    def corrections(self, layer: int, group: int, x: Tensor) -> Mapping[str, Correction]:
        """As `BoundBank.corrections`, one for each projection."""
        shape = self.stack.shape
        names = shape.projections(group)
        if not names:
            return {}
        weights, chosen = self._beside(x)
        rows = x.reshape(self.count, -1, x.shape[-1])
        hidden, _ = gated_hidden(
            F.linear(rows if chosen is None else rows[chosen], self.stack.down[layer, group].flatten(0, 1)),
            projections=len(names),
            experts=shape.experts,
            rank=shape.rank,
            top_k=shape.top_k,
            weights=weights,
        )
        if chosen is None:
            hidden = hidden.view(len(names), *x.shape[:-1], shape.columns * self.stack.rounds)
        ups = [self.stack.up[layer, name].flatten(0, 1) for name in names]
        return {name: LowRank(h, up, chosen) for name, h, up in zip(names, hidden, ups, strict=True)}

    def _beside(self, x: Tensor) -> tuple[Tensor, slice | Tensor | None]:
        """Weights and rows on the device of `x`; copied there once."""
        if x.device == self.weights.device:
            return self.weights, self.rows
        if x.device not in self._copies:
            rows = self.rows.to(x.device, non_blocking=True) if isinstance(self.rows, Tensor) else self.rows
            self._copies[x.device] = self.weights.to(x.device, non_blocking=True), rows
        return self._copies[x.device]


@dataclass(frozen=True)
class BoundBank(DeltaSource):
    """A `DeltaSource` (see `hooks`): what one batch uses of a bank. False where that is nothing."""

    stacks: tuple[BoundStack, ...]

    def on(self, responses: Tensor) -> BoundBank:
        return BoundBank(tuple(stack.on(responses) for stack in self.stacks))

    def __bool__(self) -> bool:
        return bool(self.stacks)

    def corrections(self, layer: int, group: int, x: Tensor) -> Mapping[str, Sequence[Correction]]:
        found: dict[str, list[Correction]] = {}
        for stack in self.stacks:
            for projection, correction in stack.corrections(layer, group, x).items():
                found.setdefault(projection, []).append(correction)
        return found
