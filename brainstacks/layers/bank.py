"""The stacks on one device, and the deltas of a batch composed from some of them.

Every stack is one allocation that never moves: adding or removing one touches no other, and a step that
computes meanwhile sees nothing of it. Only the stacks that some row of the batch uses are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brainstacks.layers.delta import gated_hidden
from brainstacks.layers.hooks import Correction, LowRank
from brainstacks.layers.packed_stack import PackedStack, Shape, StackTensors

Key = Hashable
"""Identity of one stack version, e.g. `("math", 3)`. Weights are bound to it, never to a position."""


LONG_RUN = 32
"""So many packed tokens of one composition are computed on their own, with the stacks that they use."""


class StackBank:
    """Resident stacks on one device, in one dtype.

    One thread at a time puts and removes; any number may place and bind at the same time.

    Args:
        device, dtype: where the deltas are computed, and in what; those of the base's activations.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self._stacks: Mapping[Key, PackedStack] = {}
        self._prepare: Callable[[PackedStack], object] = lambda stack: None

    def prepare_with(self, prepare: Callable[[PackedStack], object]) -> None:
        """Call `prepare` with every stack that is resident, and with each further one before it is."""
        self._prepare = prepare
        for stack in self._stacks.values():
            prepare(stack)

    @property
    def keys(self) -> tuple[Key, ...]:
        return tuple(self._stacks)

    @property
    def nbytes(self) -> int:
        """Bytes allocated on the device."""
        return sum(stack.nbytes for stack in self._stacks.values())

    def place(self, stack: StackTensors | PackedStack) -> PackedStack:
        """`stack` on the device, ready to be computed with; a packed one that is there already is itself.

        Raises:
            torch.OutOfMemoryError: no room.
        """
        packed = PackedStack.pack(stack, self.dtype) if isinstance(stack, StackTensors) else stack
        there = packed.to(self.device, self.dtype)
        self._prepare(there)
        return there

    def put(self, key: Key, placed: PackedStack) -> None:
        """Make what `place` gave resident under `key`. Raises KeyError: `key` is resident already."""
        if key in self._stacks:
            raise KeyError(f"{key!r} is resident already")
        self._stacks = {**self._stacks, key: placed}

    def add(self, key: Key, stack: StackTensors | PackedStack) -> None:
        """`put` what `place` gives, and raise as they do; nothing has changed then."""
        self.put(key, self.place(stack))

    def remove(self, key: Key) -> None:
        """Give up the memory of `key`, once no bound batch uses it any more.

        Raises:
            KeyError: `key` is not resident.
        """
        self._require(key)
        self._stacks = {other: stack for other, stack in self._stacks.items() if other != key}

    def _require(self, key: Key) -> None:
        if key not in self._stacks:
            raise KeyError(f"{key!r} is not resident; resident are {self.keys}")

    def stack(self, key: Key) -> PackedStack:
        """Raises KeyError: `key` is not resident."""
        self._require(key)
        return self._stacks[key]

    def bind(
        self, weights: Sequence[Mapping[Any, float]], *, packed: bool = False, together: bool = False
    ) -> BoundBank:
        """The deltas for a batch whose row i is composed by `weights[i]` (key -> weight).

        Args:
            packed: the batch is one row `[1, T]` and `weights` has an entry per token of it.
            together: compute all tokens in one, so that their weights decide no shape.

        Raises:
            KeyError: a weight is not 0 for a key that is not resident.
        """
        used = {key for row in weights for key, weight in row.items() if weight != 0.0}
        if not used <= set(self._stacks):
            missing = sorted(map(str, used - set(self._stacks)))
            raise KeyError(f"{missing} not resident; resident are {self.keys}")
        spans: list[slice | None] = [None]
        if packed:
            spans = [slice(0, len(weights))] if together else [*_spans(weights)]
        return BoundBank(tuple(bound for span in spans for bound in self._bound(weights, span)))

    def _bound(self, weights: Sequence[Mapping[Any, float]], span: slice | None) -> Iterator[_Bound]:
        """By shape, what the rows of a span use."""
        rows = weights[span] if span is not None else weights
        used = {key for row in rows for key, weight in row.items() if weight != 0.0}
        by_shape: dict[Shape, list[Key]] = {}
        for key in sorted(used, key=str):  # sums are added in one order, whatever else is in the batch
            by_shape.setdefault(self._stacks[key].shape, []).append(key)
        for shape, keys in sorted(by_shape.items()):
            stacks = [self._stacks[key] for key in keys]
            columns = [
                (key, stack.scaling)
                for key, stack in zip(keys, stacks, strict=True)
                for _ in range(stack.rounds)
            ]
            table = torch.tensor(
                [[row.get(key, 0.0) * scaling for key, scaling in columns] for row in rows],
                dtype=torch.float32,
            ).to(self.device, non_blocking=True)
            yield _Bound(shape, stacks, table, span)


def _spans(weights: Sequence[Mapping[Any, float]]) -> list[slice]:
    """Long runs of tokens of one composition, such as a prompt's, each alone; between them, together."""
    ends = [i for i in range(1, len(weights)) if weights[i] is not weights[i - 1]] + [len(weights)]
    spans: list[slice] = []
    start = 0
    mixed = False  # the last span is one of short runs, and takes in those that follow
    for end in ends:
        long = end - start >= LONG_RUN
        if mixed and not long:
            spans[-1] = slice(spans[-1].start, end)
        else:
            spans.append(slice(start, end))
        start, mixed = end, not long
    return spans


@dataclass(frozen=True)
class _Bound:
    """The stacks of one shape that a span of a batch uses.

    Attributes:
        weights: [rows, G] float32 or, of a span of packed tokens, [t, G]; w * s of each of the G rounds.
        span: of the packed tokens; None for all rows of a batch that is not packed.
    """

    shape: Shape
    stacks: Sequence[PackedStack]
    weights: Tensor
    span: slice | None

    def corrections(self, layer: int, group: int, x: Tensor) -> Mapping[str, Sequence[Correction]]:
        names = self.shape.projections(group)
        if not names:
            return {}
        weights = self.weights[..., None, None]
        if self.span is None:
            weights = weights[:, None]
        else:
            x = x.view(-1, x.shape[-1])[self.span]
        shape, found = self.shape, {name: list[Correction]() for name in names}
        first = 0
        for stack in self.stacks:
            hidden, _ = gated_hidden(
                F.linear(x, stack.down[layer, group].flatten(0, 1)),
                projections=len(names),
                experts=shape.experts,
                rank=shape.rank,
                top_k=shape.top_k,
                weights=weights[..., first : first + stack.rounds, :, :],
            )
            first += stack.rounds
            for i, name in enumerate(names):
                up = stack.up[layer, name].flatten(0, 1)
                found[name].append(LowRank(hidden[i], up, self.span))
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
