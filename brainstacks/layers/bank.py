"""The stacks on one device, and the deltas of a batch composed from some of them.

Every stack is one allocation that never moves: adding or removing one touches no other, and a step that
computes meanwhile sees nothing of it. Only the stacks that some row of the batch uses are computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brainstacks.layers.compiled import CompiledDeltas
from brainstacks.layers.delta import gated_hidden
from brainstacks.layers.hooks import Correction, LowRank
from brainstacks.layers.packed_stack import PackedStack, Shape, StackTensors

Key = Hashable
"""Identity of one stack version, e.g. `("math", 3)`. Weights are bound to it, never to a position."""


class StackBank:
    """Resident stacks on one device, in one dtype.

    One thread at a time changes it; any number may bind at the same time.

    Args:
        device, dtype: where the deltas are computed, and in what; those of the base's activations.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self._stacks: Mapping[Key, PackedStack] = {}

    @property
    def keys(self) -> tuple[Key, ...]:
        return tuple(self._stacks)

    @property
    def nbytes(self) -> int:
        """Bytes allocated on the device."""
        return sum(stack.nbytes for stack in self._stacks.values())

    def add(self, key: Key, stack: StackTensors | PackedStack) -> None:
        """Make `stack` resident under `key`; a packed one that is there already becomes the bank's own.

        Raises:
            KeyError: `key` is resident already.
            torch.OutOfMemoryError: no room; nothing has changed.
        """
        if key in self._stacks:
            raise KeyError(f"{key!r} is resident already")
        packed = PackedStack.pack(stack, self.dtype) if isinstance(stack, StackTensors) else stack
        self._stacks = {**self._stacks, key: packed.to(self.device, self.dtype)}

    def remove(self, key: Key) -> None:
        """Give up the memory of `key`, once no bound batch uses it any more.

        Raises:
            KeyError: `key` is not resident.
        """
        self._require(key)
        self._stacks = {other: stack for other, stack in self._stacks.items() if other != key}

    def take(self, key: Key) -> PackedStack:
        """Remove `key`, and keep it in host memory.

        Raises:
            KeyError: `key` is not resident.
        """
        self._require(key)
        packed = self._stacks[key].to(torch.device("cpu"), self.dtype)
        self.remove(key)
        return packed

    def _require(self, key: Key) -> None:
        if key not in self._stacks:
            raise KeyError(f"{key!r} is not resident; resident are {self.keys}")

    def bind(
        self, weights: Sequence[Mapping[Any, float]], *, packed: bool = False, invariant: bool = False
    ) -> BoundBank:
        """The deltas for a batch whose row i is composed by `weights[i]` (key -> weight).

        Args:
            packed: the batch is one row `[1, T]` and `weights` has an entry per token of it.
            invariant: a row's deltas do not depend, to the last bit, on which others are in the batch.

        Raises:
            KeyError: a weight is not 0 for a key that is not resident.
        """
        stacks = self._stacks
        used = {key for row in weights for key, weight in row.items() if weight != 0.0}
        if not used <= set(stacks):
            missing = sorted(map(str, used - set(stacks)))
            raise KeyError(f"{missing} not resident; resident are {tuple(stacks)}")
        by_shape: dict[Shape, list[Key]] = {}
        for key in sorted(used, key=str):  # sums are added in one order, whatever else is in the batch
            by_shape.setdefault(stacks[key].shape, []).append(key)
        parts = []
        for shape, keys in sorted(by_shape.items()):
            bound = [stacks[key] for key in keys]
            table = torch.tensor(
                [
                    [
                        row.get(key, 0.0) * stack.scaling
                        for key, stack in zip(keys, bound, strict=True)
                        for _ in range(stack.rounds)
                    ]
                    for row in weights
                ],
                dtype=torch.float32,
            )
            parts.append(_Bound(shape, bound, table.to(self.device, non_blocking=True), packed, invariant))
        return BoundBank(tuple(parts))


class _Bound:
    """The stacks of one shape that a batch uses.

    Args:
        weights: [rows, G] or, packed, [T, G] float32; w * s of each of the stacks' G rounds.
    """

    def __init__(
        self, shape: Shape, stacks: Sequence[PackedStack], weights: Tensor, packed: bool, invariant: bool
    ) -> None:
        self._shape = shape
        self._stacks = stacks
        self._weights = (weights[None] if packed else weights[:, None])[..., None, None]
        self._compiled = CompiledDeltas(shape, stacks, weights, invariant) if packed else None

    def corrections(self, layer: int, group: int, x: Tensor) -> Mapping[str, Sequence[Correction]]:
        names = self._shape.projections(group)
        if not names:
            return {}
        if self._compiled is not None and self._compiled.takes(x):
            return self._compiled.corrections(layer, group, x)
        shape, found = self._shape, {name: list[Correction]() for name in names}
        first = 0
        for stack in self._stacks:
            hidden, _ = gated_hidden(
                F.linear(x, stack.down[layer, group].flatten(0, 1)),
                projections=len(names),
                experts=shape.experts,
                rank=shape.rank,
                top_k=shape.top_k,
                weights=self._weights[..., first : first + stack.rounds, :, :],
            )
            first += stack.rounds
            for i, name in enumerate(names):
                found[name].append(LowRank(hidden[i], stack.up[layer, name].flatten(0, 1)))
        return found


@dataclass(frozen=True)
class BoundBank:
    """A `DeltaSource` (see `hooks`): a bank and the weights of one batch."""

    buckets: tuple[_Bound, ...]

    def corrections(self, layer: int, group: int, x: Tensor) -> Mapping[str, Sequence[Correction]]:
        if len(self.buckets) == 1:
            return self.buckets[0].corrections(layer, group, x)
        out: dict[str, list[Correction]] = {}
        for bucket in self.buckets:
            for projection, found in bucket.corrections(layer, group, x).items():
                out.setdefault(projection, []).extend(found)
        return out
