"""Deltas on a base model as forward hooks: the base's weights and modules stay untouched.

A hook on each projection adds the deltas of the sources in force; without any, it returns None and the
base's own output passes through, the same tensor. `detach` leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from brainstacks.layers.projections import INPUT_GROUPS, Site


class DeltaSource(Protocol):
    """Something that corrects projections: resident stacks, or the stack that is being trained."""

    def hidden(
        self, layer: int, group: int, x: Tensor
    ) -> Mapping[str, Sequence[tuple[Tensor, Tensor | None]]]:
        """Low-rank factors of every correction in one input group.

        Args:
            group: index into `INPUT_GROUPS`.
            x: [..., d_in], the group's shared input.

        Returns:
            projection -> pairs (hidden [..., C], up [C, d_out]), whose correction is `hidden @ up`, or
            (correction [..., d_out], None) where it is computed already; corrections are summed.
        """


class _Group:
    """The projections of one layer that share an input; computes their hidden activations once."""

    def __init__(self, layer: int, group: int) -> None:
        self.layer = layer
        self.group = group
        self.last = INPUT_GROUPS[group][-1]
        self._input: Tensor | None = None
        self._pairs: dict[str, list[tuple[Tensor, Tensor | None]]] = {}

    def pairs(
        self, projection: str, x: Tensor, sources: Sequence[DeltaSource]
    ) -> list[tuple[Tensor, Tensor | None]]:
        if self._input is not x:
            self.clear()
            for source in sources:
                for name, pairs in source.hidden(self.layer, self.group, x).items():
                    self._pairs.setdefault(name, []).extend(pairs)
            self._input = x
        found = self._pairs.get(projection, [])
        if projection == self.last:
            self.clear()  # keep no activation alive beyond its use
        return found

    def clear(self) -> None:
        self._input = None
        self._pairs = {}


class CompositionHooks:
    """The hooks of one base model.

    Args:
        sites: from `projections.find_sites`.
    """

    def __init__(self, sites: Mapping[tuple[int, str], Site]) -> None:
        self._sites = sites
        self._sources: tuple[DeltaSource, ...] = ()
        self._handles: list[RemovableHandle] = []
        self._groups = {
            (layer, group): _Group(layer, group)
            for layer in sorted({layer for layer, _ in sites})
            for group in range(len(INPUT_GROUPS))
        }

    def attach(self) -> None:
        """Put a hook on every projection; does nothing when they are there."""
        if self._handles:
            return
        for group, names in enumerate(INPUT_GROUPS):
            for (layer, projection), site in self._sites.items():
                if projection in names:
                    hook = self._hook(self._groups[layer, group], projection)
                    self._handles.append(site.module.register_forward_hook(hook))

    def detach(self) -> None:
        """Remove every hook; the model is bit for bit what it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def composed(self, *sources: DeltaSource) -> Iterator[None]:
        """Within the block, forwards of the base add the deltas of `sources`, and only of those."""
        before, self._sources = self._sources, sources
        try:
            yield
        finally:
            self._sources = before
            for group in self._groups.values():
                group.clear()

    def _hook(self, group: _Group, projection: str) -> Any:
        def add_deltas(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self._sources:
                return None
            x = args[0]
            for hidden, up in group.pairs(projection, x, self._sources):
                if up is None:
                    output = output + hidden
                    continue
                rows = output.view(-1, output.shape[-1])
                flat = torch.addmm(rows, hidden.view(-1, hidden.shape[-1]), up)
                output = flat.view(output.shape)
            return output

        return add_deltas
