"""The stacks on one device, packed so that any number of them is one GEMM down and one up per projection.

A bank is immutable: adding or removing a stack makes a new bank that shares nothing mutable with the old,
so a forward that is under way keeps the one it started with.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brainstacks.config import StackConfig
from brainstacks.layers.delta import gated_hidden, pack_down
from brainstacks.layers.projections import INPUT_GROUPS

Key = Hashable
"""Identity of one stack version, e.g. `("math", 3)`. Weights are bound to it, never to a position."""


@dataclass(frozen=True)
class StackTensors:
    """One domain stack in memory.

    Attributes:
        tensors: `rounds.<n>.layers.<layer>.<projection>.{A,B,gate}` -> tensor, as in the file.
    """

    config: StackConfig
    rounds: int
    tensors: Mapping[str, Tensor]


Shape = tuple[int, int, int, tuple[str, ...]]

BATCHED_UP_TOKENS = 4
"""Up to this many tokens, one batched GEMM for a whole group beats one per projection: dispatch dominates."""


def _shape(config: StackConfig) -> Shape:
    return (config.rank, config.experts, config.top_k, config.projections)


@dataclass(frozen=True)
class _Bucket:
    """All rounds of all stacks that have one (rank, experts, top-k, projections).

    Attributes:
        keys: stacks in this bucket, in order; their rounds are contiguous.
        rounds: rounds per stack.
        scaling: s per stack.
        down: per (layer, group) [G * P * N * (r+1), d_in].
        up: per (layer, group) [P, G * N * r, widest d_out]; a narrower projection is padded with zeros, so
            that the group's projections are one batched GEMM.
        width: d_out per projection.
    """

    shape: Shape
    keys: tuple[Key, ...]
    rounds: tuple[int, ...]
    scaling: tuple[float, ...]
    down: Mapping[tuple[int, int], Tensor]
    up: Mapping[tuple[int, int], Tensor]
    width: Mapping[str, int]

    @staticmethod
    def of(key: Key, stack: StackTensors, device: torch.device, dtype: torch.dtype) -> _Bucket:
        config = stack.config
        down: dict[tuple[int, int], Tensor] = {}
        up: dict[tuple[int, int], Tensor] = {}
        width = {p: stack.tensors[f"rounds.0.layers.0.{p}.B"].shape[0] for p in config.projections}

        def parts(layer: int, projection: str, part: str) -> list[Tensor]:
            return [
                stack.tensors[f"rounds.{n}.layers.{layer}.{projection}.{part}"] for n in range(stack.rounds)
            ]

        for layer in range(config.layers):
            for group, names in enumerate(INPUT_GROUPS):
                present = [p for p in names if p in config.projections]
                if not present:
                    continue
                a = [parts(layer, p, "A") for p in present]
                gate = [parts(layer, p, "gate") for p in present]
                packed = [pack_down([t[n] for t in a], [t[n] for t in gate]) for n in range(stack.rounds)]
                down[layer, group] = torch.cat(packed).to(device, dtype)
                columns = stack.rounds * config.experts * config.rank
                wide = torch.zeros(len(present), columns, max(width[p] for p in present))
                for i, p in enumerate(present):
                    wide[i, :, : width[p]] = torch.cat(parts(layer, p, "B"), dim=1).T
                up[layer, group] = wide.to(device, dtype)
        return _Bucket(_shape(config), (key,), (stack.rounds,), (config.scaling,), down, up, width)

    def plus(self, other: _Bucket) -> _Bucket:
        return _Bucket(
            self.shape,
            self.keys + other.keys,
            self.rounds + other.rounds,
            self.scaling + other.scaling,
            {k: torch.cat([t, other.down[k]]) for k, t in self.down.items()},
            {k: torch.cat([t, other.up[k]], dim=1) for k, t in self.up.items()},
            self.width,
        )

    def minus(self, key: Key) -> _Bucket | None:
        """The bucket without `key`; None when nothing is left."""
        i = self.keys.index(key)
        if len(self.keys) == 1:
            return None
        start, total = sum(self.rounds[:i]), sum(self.rounds)
        keep = [n for n in range(total) if not start <= n < start + self.rounds[i]]

        def cut(t: Tensor) -> Tensor:
            rest: Tensor = t.unflatten(0, (total, -1))[keep]
            return rest.flatten(0, 1)

        return _Bucket(
            self.shape,
            self.keys[:i] + self.keys[i + 1 :],
            self.rounds[:i] + self.rounds[i + 1 :],
            self.scaling[:i] + self.scaling[i + 1 :],
            {k: cut(t) for k, t in self.down.items()},
            {k: cut(t.transpose(0, 1)).transpose(0, 1).contiguous() for k, t in self.up.items()},
            self.width,
        )

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.down.values()) + sum(t.nbytes for t in self.up.values())


class StackBank:
    """Resident stacks on one device, in one dtype.

    Args:
        device, dtype: where the deltas are computed, and in what; those of the base's activations.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, _buckets: tuple[_Bucket, ...] = ()) -> None:
        self.device = device
        self.dtype = dtype
        self._buckets = _buckets

    @property
    def keys(self) -> tuple[Key, ...]:
        return tuple(key for bucket in self._buckets for key in bucket.keys)

    @property
    def nbytes(self) -> int:
        return sum(bucket.nbytes for bucket in self._buckets)

    def plus(self, key: Key, stack: StackTensors) -> StackBank:
        """A bank that also holds `stack` under `key`.

        Raises:
            KeyError: `key` is resident already.
        """
        if key in self.keys:
            raise KeyError(f"{key!r} is resident already")
        new = _Bucket.of(key, stack, self.device, self.dtype)
        buckets = list(self._buckets)
        for i, bucket in enumerate(buckets):
            if bucket.shape == new.shape:
                buckets[i] = bucket.plus(new)
                return StackBank(self.device, self.dtype, tuple(buckets))
        return StackBank(self.device, self.dtype, (*self._buckets, new))

    def minus(self, key: Key) -> StackBank:
        """A bank without `key`.

        Raises:
            KeyError: `key` is not resident.
        """
        if key not in self.keys:
            raise KeyError(f"{key!r} is not resident; resident are {self.keys}")
        buckets = [b.minus(key) if key in b.keys else b for b in self._buckets]
        return StackBank(self.device, self.dtype, tuple(b for b in buckets if b is not None))

    def bind(self, weights: Sequence[Mapping[Any, float]], *, packed: bool = False) -> BoundBank:
        """The deltas for a batch whose row i is composed by `weights[i]` (key -> weight).

        Args:
            packed: the batch is one row `[1, T]` and `weights` has an entry per token of it.

        Raises:
            KeyError: a weight is not 0 for a key that is not resident.
        """
        used = {key for row in weights for key, weight in row.items() if weight != 0.0}
        if not used <= set(self.keys):
            raise KeyError(
                f"{sorted(map(str, used - set(self.keys)))} not resident; resident are {self.keys}"
            )
        bound = [
            _BoundBucket.of(b, weights, packed, self.device) for b in self._buckets if used & set(b.keys)
        ]
        return BoundBank(tuple(bound))


@dataclass(frozen=True)
class _BoundBucket:
    """The rounds first..last of a bucket, with a weight per row and round.

    Attributes:
        weights: [rows, 1, G', 1, 1] or, packed, [1, T, G', 1, 1] float32; w * s per round.
    """

    bucket: _Bucket
    first: int
    last: int
    weights: Tensor

    @staticmethod
    def of(
        bucket: _Bucket, rows: Sequence[Mapping[Any, float]], packed: bool, device: torch.device
    ) -> _BoundBucket:
        # One contiguous range of rounds covers the stacks in use, so that both GEMMs read plain slices.
        used = [i for i, key in enumerate(bucket.keys) if any(row.get(key, 0.0) != 0.0 for row in rows)]
        lo, hi = used[0], used[-1] + 1
        stacks = list(zip(bucket.keys, bucket.rounds, bucket.scaling, strict=True))[lo:hi]
        table = torch.tensor(
            [[row.get(key, 0.0) * s for key, rounds, s in stacks for _ in range(rounds)] for row in rows],
            dtype=torch.float32,
        ).to(device, non_blocking=True)
        first = sum(bucket.rounds[:lo])
        weights = table[None] if packed else table[:, None]
        return _BoundBucket(bucket, first, first + table.shape[1], weights[..., None, None])

    def hidden(self, layer: int, group: int, x: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
        """See `hooks.DeltaSource`: for each projection of the group, one pair."""
        rank, experts, top_k, projections = self.bucket.shape
        names = [p for p in INPUT_GROUPS[group] if p in projections]
        if not names:
            return {}
        width = len(names) * experts * (rank + 1)
        down = F.linear(x, self.bucket.down[layer, group][self.first * width : self.last * width])
        hidden, _ = gated_hidden(
            down, projections=len(names), experts=experts, rank=rank, top_k=top_k, weights=self.weights
        )
        up = self.bucket.up[layer, group][:, self.first * experts * rank : self.last * experts * rank]
        widths = [self.bucket.width[name] for name in names]
        if len(names) > 1 and x.numel() <= BATCHED_UP_TOKENS * x.shape[-1]:
            deltas = torch.bmm(hidden.flatten(1, -2), up)
            return {
                name: (delta[:, :d].view(*x.shape[:-1], d), None)
                for name, delta, d in zip(names, deltas, widths, strict=True)
            }
        return {
            name: (part, factor[:, :d])
            for name, part, factor, d in zip(names, hidden, up, widths, strict=True)
        }


@dataclass(frozen=True)
class BoundBank:
    """A `DeltaSource` (see `hooks`): a bank and the weights of one batch."""

    buckets: tuple[_BoundBucket, ...]

    def hidden(
        self, layer: int, group: int, x: Tensor
    ) -> Mapping[str, Sequence[tuple[Tensor, Tensor | None]]]:
        out: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
        for bucket in self.buckets:
            for projection, pair in bucket.hidden(layer, group, x).items():
                out.setdefault(projection, []).append(pair)
        return out
