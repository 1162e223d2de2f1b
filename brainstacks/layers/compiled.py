"""Deltas of a step of few tokens on the CPU, through the compiled loops of `kernels.deltas`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from brainstacks.kernels import deltas
from brainstacks.layers.hooks import Correction
from brainstacks.layers.packed_stack import PackedStack, Shape
from brainstacks.layers.projections import INPUT_GROUPS

DTYPES = (torch.bfloat16, torch.float32)


class CompiledDeltas:
    """The stacks of one shape that T neighbouring tokens of a packed batch use.

    Args:
        stacks: of G rounds together.
        weights: [T, G] float32, w * s; see `fits`.
        start: the first of the tokens, in the batch.
        invariant: see `StackBank.bind`.
    """

    @staticmethod
    def fits(weights: Tensor, dtype: torch.dtype) -> bool:
        """Whether the kernels compute with so many tokens, on this device, in this dtype."""
        return weights.device.type == "cpu" and weights.shape[0] <= deltas.MAX_TOKENS and dtype in DTYPES

    def __init__(
        self, shape: Shape, stacks: Sequence[PackedStack], weights: Tensor, start: int, invariant: bool
    ) -> None:
        self._start, self._tokens = start, weights.shape[0]
        self._dtype = stacks[0].dtype
        self._kernels = deltas.Kernels.of(self._dtype == torch.float32)
        rounds, groups = weights.shape[1], len(INPUT_GROUPS)
        self._stacks = stacks  # what is pointed to below stays alive
        down, up = zip(*(stack.addresses for stack in stacks), strict=True)
        self._down, self._up = np.concatenate(down, axis=2), np.concatenate(up, axis=2)
        self._weights = weights.T.contiguous()
        widest = max(d_in for _, d_in, _ in shape.dims)
        most = max(len(shape.projections(group)) for group in range(groups))
        self._x32 = torch.empty(self._tokens, widest)
        self._hidden = torch.empty(most, rounds, self._tokens, shape.columns)
        self._gates = torch.empty(most, rounds, self._tokens, shape.experts)
        names = [p for p, _, _ in shape.dims]
        self._group_of: list[dict[str, int]] = []
        self._calls = np.zeros((shape.layers, groups, len(deltas.FIELDS)), np.int64)
        for group in range(groups):
            present = shape.projections(group)
            self._group_of.append({p: i for i, p in enumerate(present)})
            if not present:
                continue
            at = names.index(present[0])
            fields = {
                "invariant": int(invariant),
                "tokens": self._tokens,
                "rounds": rounds,
                "projections": len(present),
                "experts": shape.experts,
                "rank": shape.rank,
                "top_k": shape.top_k,
                "d_in": shape.dims[at][1],
                "down_pointers": self._down[:, group].ctypes.data,
                "up_pointers": self._up[:, at].ctypes.data,
                "weights": self._weights.data_ptr(),
                "x32": self._x32.data_ptr(),
                "hidden": self._hidden.data_ptr(),
                "gates": self._gates.data_ptr(),
            }
            for name, value in fields.items():
                self._calls[:, group, deltas.FIELDS.index(name)] = value
            layers = np.arange(shape.layers)
            down_step, up_step = self._down.strides[0], self._up.strides[0]
            self._calls[:, group, deltas.FIELDS.index("down_pointers")] += layers * down_step
            self._calls[:, group, deltas.FIELDS.index("up_pointers")] += layers * up_step

    def takes(self, x: Tensor) -> bool:
        """Whether the deltas of `x`, the whole batch, can be computed here."""
        return (
            x.dtype == self._dtype
            and x.is_contiguous()
            and x.numel() >= (self._start + self._tokens) * x.shape[-1]
            and not x.requires_grad
        )

    def corrections(self, layer: int, group: int, x: Tensor) -> dict[str, tuple[Correction, ...]]:
        """See `hooks.DeltaSource`; the activations are valid until the next group's."""
        call = self._calls[layer, group]
        self._kernels.down(call, self._address(x))
        return {p: (partial(self._add, call, i),) for p, i in self._group_of[group].items()}

    def _add(self, call: np.ndarray, projection: int, output: Tensor) -> Tensor:
        """In place: what a projection has just put out belongs to nobody else."""
        if output.dtype != self._dtype or not output.is_contiguous():
            raise TypeError(f"a projection gave {output.dtype}, strides {output.stride()}; no deltas fit it")
        self._kernels.up(call, projection, self._address(output), output.shape[-1])
        return output

    def _address(self, batch: Tensor) -> int:
        """Of the first token's row."""
        return batch.data_ptr() + self._start * batch.shape[-1] * batch.element_size()
