"""One stack in memory: as its file has it, and packed as it is computed with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from brainstacks.config import Applies, StackConfig
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
    def parts(self) -> dict[tuple[int, int | str], tuple[int, int]]:
        """Of one round: (layer, group) -> [rows, d_in] of A and gates, (layer, projection) -> of B."""
        d_in = {projection: size for projection, size, _ in self.dims}
        found: dict[tuple[int, int | str], tuple[int, int]] = {}
        for layer in range(self.layers):
            for group in range(len(INPUT_GROUPS)):
                names = self.projections(group)
                if names:
                    found[layer, group] = (len(names) * self.experts * (self.rank + 1), d_in[names[0]])
            for projection, _, d_out in self.dims:
                found[layer, projection] = (self.columns, d_out)
        return found

    def size(self, rounds: int) -> int:
        """Numbers in so many rounds, packed."""
        return rounds * sum(_filled(rows * width) for rows, width in self.parts.values())

    def nbytes(self, rounds: int, dtype: torch.dtype) -> int:
        """That so many rounds take, packed."""
        return dtype.itemsize * self.size(rounds)


def _filled(count: int) -> int:
    """Up to a whole number of `ALIGNED`."""
    return -(-count // ALIGNED) * ALIGNED


class PackedStack:
    """All rounds of one stack in one allocation, in the layout that deltas are computed from.

    Args:
        scaling: s = alpha / sqrt(r).
        applies: where its deltas act.
        memory: [shape.size(rounds)], all of it.
        arrival: of what is in it.

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
        memory: Tensor,
        arrival: Arrival | None = None,
    ) -> None:
        self.shape = shape
        self.rounds = rounds
        self.scaling = scaling
        self.applies = applies
        self._memory = memory
        self._arrival = arrival or Arrival()
        parts = shape.parts
        sizes = [rounds * _filled(rows * width) for rows, width in parts.values()]
        self.down: dict[tuple[int, int], Tensor] = {}
        self.up: dict[tuple[int, str], Tensor] = {}
        pieces = self._memory.split(sizes)
        for ((layer, part), (rows, width)), piece in zip(parts.items(), pieces, strict=True):
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
        packed = PackedStack(shape, stack.rounds, config.scaling, config.applies, memory)
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
        return self._memory.nbytes

    @property
    def device(self) -> torch.device:
        return self._memory.device

    @property
    def dtype(self) -> torch.dtype:
        return self._memory.dtype

    def to(self, device: torch.device, dtype: torch.dtype, arrival: Arrival | None = None) -> PackedStack:
        """This stack there: itself, where it is there already.

        Args:
            arrival: of the copy; the stack may be read before only by the stream that copies.
        """
        if self.device.type == device.type == "cpu" and self.dtype == dtype:
            return self
        memory = torch.empty(self._memory.shape, device=device, dtype=dtype)
        memory.copy_(self._memory, non_blocking=True)
        return PackedStack(self.shape, self.rounds, self.scaling, self.applies, memory, arrival)

    def use(self) -> None:
        """Let the current stream read it from now on: as late as it is there, and as long as it likes."""
        self._arrival.use(self._memory)
