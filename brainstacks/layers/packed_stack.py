"""One stack in memory: as its file has it, and packed as it is computed with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brainstacks.config import Applies, StackConfig
from brainstacks.device_map import Part
from brainstacks.layers.delta import pack_down
from brainstacks.layers.projections import INPUT_GROUPS
from brainstacks.layers.transfer import Arrival, ordinary_memory

HostMemory = Callable[[int, torch.dtype], Tensor]
"""[size] of a dtype, undefined, in host memory."""


ALIGNED = 8
"""Numbers that each round of each part begins with a multiple of: kernels read 16 bytes at once."""


@dataclass(frozen=True)
class StackTensors:
    """One domain stack as in its file.

    Attributes:
        tensors: `rounds.<n>.layers.<layer>.<projection>.{A,B,gate}` -> tensor.
    """

    config: StackConfig
    rounds: int
    tensors: Mapping[str, Tensor]

    @property
    def dims(self) -> dict[str, tuple[int, int]]:
        """(d_in, d_out) per projection."""
        first = "rounds.0.layers.0"
        return {
            p: (self.tensors[f"{first}.{p}.A"].shape[1], self.tensors[f"{first}.{p}.B"].shape[0])
            for p in self.config.projections
        }


@dataclass(frozen=True, order=True)
class Shape:
    """What stacks must share to be computed together, and in which order.

    Attributes:
        dims: (projection, d_in, d_out) of each projection that carries deltas, in forward order.
    """

    layers: int
    rank: int
    experts: int
    top_k: int
    dims: tuple[tuple[str, int, int], ...]

    @staticmethod
    def of(config: StackConfig, dims: Mapping[str, tuple[int, int]]) -> Shape:
        present = tuple((p, *dims[p]) for p in config.projections)
        return Shape(config.layers, config.rank, config.experts, config.top_k, present)

    def projections(self, group: int) -> tuple[str, ...]:
        """Those of one input group."""
        return tuple(p for p, _, _ in self.dims if p in INPUT_GROUPS[group])

    @property
    def columns(self) -> int:
        """N * r, the width of a delta's low-rank space."""
        return self.experts * self.rank

    @property
    def parts(self) -> dict[int | str, tuple[int, int]]:
        """Of one round in one layer: group -> [rows, d_in] of A and gates, projection -> [C, d_out] of B."""
        d_in = {projection: size for projection, size, _ in self.dims}
        found: dict[int | str, tuple[int, int]] = {}
        for group in range(len(INPUT_GROUPS)):
            names = self.projections(group)
            if names:
                found[group] = (len(names) * self.experts * (self.rank + 1), d_in[names[0]])
        return found | {projection: (self.columns, d_out) for projection, _, d_out in self.dims}

    def size(self, rounds: int) -> int:
        """Numbers in so many rounds, packed."""
        return self.layers * rounds * sum(_filled(rows * width) for rows, width in self.parts.values())

    def nbytes(self, rounds: int, dtype: torch.dtype) -> int:
        """That so many rounds take, packed."""
        return dtype.itemsize * self.size(rounds)


def _filled(count: int) -> int:
    """Up to a whole number of `ALIGNED`."""
    return -(-count // ALIGNED) * ALIGNED


class PackedStack:
    """All rounds of one stack, layer after layer, in the layout that deltas are computed from: in one
    allocation, or in one for each part of a base that lies on several devices.

    Args:
        scaling: s = alpha / sqrt(r).
        applies: where its deltas act.
        memory: one or more, each of some neighbouring layers; [shape.size(rounds)] in all.
        arrivals: of what is in each; none where it has come.

    Attributes:
        down: (layer, group) -> [rounds, P * N * (r + 1), d_in], see `delta.pack_down`.
        up: (layer, projection) -> [rounds, N * r, d_out].
    """

    def __init__(
        self,
        shape: Shape,
        rounds: int,
        scaling: float,
        applies: Applies,
        memory: Sequence[Tensor],
        arrivals: Sequence[Arrival] = (),
    ) -> None:
        self.shape = shape
        self.rounds = rounds
        self.scaling = scaling
        self.applies = applies
        self._memory = tuple(memory)
        self._arrivals = tuple(arrivals)
        parts = shape.parts
        sizes = [rounds * _filled(rows * width) for rows, width in parts.values()]
        self.down: dict[tuple[int, int], Tensor] = {}
        self.up: dict[tuple[int, str], Tensor] = {}
        layers = [layer for held in self._memory for layer in held.view(-1, sum(sizes))]
        for layer, numbers in enumerate(layers):
            for (part, (rows, width)), piece in zip(parts.items(), numbers.split(sizes), strict=True):
                view = piece.view(rounds, -1)[:, : rows * width].unflatten(1, (rows, width))
                if isinstance(part, int):
                    self.down[layer, part] = view
                else:
                    self.up[layer, part] = view

    @staticmethod
    def pack(
        stack: StackTensors, dtype: torch.dtype, host_memory: HostMemory = ordinary_memory
    ) -> PackedStack:
        """`stack`, packed in host memory."""
        config, shape = stack.config, Shape.of(stack.config, stack.dims)
        memory = host_memory(shape.size(stack.rounds), dtype)
        packed = PackedStack(shape, stack.rounds, config.scaling, config.applies, [memory])
        for n in range(stack.rounds):
            for layer in range(config.layers):
                where = f"rounds.{n}.layers.{layer}"
                for group in range(len(INPUT_GROUPS)):
                    names = packed.shape.projections(group)
                    if names:
                        a = [stack.tensors[f"{where}.{p}.A"] for p in names]
                        gate = [stack.tensors[f"{where}.{p}.gate"] for p in names]
                        packed.down[layer, group][n] = pack_down(a, gate)
                for p in config.projections:
                    packed.up[layer, p][n] = stack.tensors[f"{where}.{p}.B"].T
        return packed

    @property
    def nbytes(self) -> int:
        return sum(held.nbytes for held in self._memory)

    @property
    def dtype(self) -> torch.dtype:
        return self._memory[0].dtype

    def to(self, parts: Sequence[Part], dtype: torch.dtype, arrivals: Sequence[Arrival] = ()) -> PackedStack:
        """This stack, which is in host memory in one piece, there: itself, where that is host memory too.

        Args:
            parts: all its layers, and where they are to be.
            arrivals: of the copy of each part, which may be read before only by the stream that copies.
        """
        if self.dtype == dtype and all(part.device.type == "cpu" for part in parts):
            return self
        (held,) = self._memory
        of_layer = len(held) // self.shape.layers
        pieces = held.split([of_layer * len(part.layers) for part in parts])
        memory = []
        for part, piece in zip(parts, pieces, strict=True):
            memory.append(torch.empty(piece.shape, device=part.device, dtype=dtype))
            memory[-1].copy_(piece, non_blocking=True)
        return PackedStack(self.shape, self.rounds, self.scaling, self.applies, memory, arrivals)

    def use(self) -> None:
        """Let the current stream of each device read it from now on: as late as it is there, and as long as
        it likes."""
        for arrival, held in zip(self._arrivals, self._memory, strict=False):
            arrival.use(held)
