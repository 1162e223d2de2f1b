"""Deltas on a base model as forward hooks: the base's weights and modules stay untouched.

A hook on each projection adds the deltas of the sources in force; without any, it returns None and the
base's own output passes through, the same tensor. `detach` leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from brainstacks.layers.projections import INPUT_GROUPS, Site

Correction = Callable[[Tensor], Tensor]
"""A projection's output [..., d_out] -> that output with the deltas added; it may write in place."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """The correction `hidden @ up`, in place: hidden [..., C], up [C, d_out].

    Attributes:
        rows: of the output, seen as [rows, tokens, d_out], those of `hidden` [r, tokens, C]; None for all.
    """

    hidden: Tensor
    up: Tensor
    rows: slice | Tensor | None = None

    def __call__(self, output: Tensor) -> Tensor:
        tokens, columns = self.hidden.shape[-2:]
        hidden, flat = self.hidden.view(-1, columns), output.view(-1, output.shape[-1])
        if self.rows is None and torch.is_grad_enabled():
            if output._is_view():  # of a quantised linear's own output, which autograd keeps to itself
                return torch.addmm(flat, hidden, self.up).view(output.shape)
            corrected: Tensor = _AddLowRank.apply(output, hidden, self.up)  # type: ignore[no-untyped-call]
            return corrected
        rows = flat.view(-1, tokens, flat.shape[-1])
        if isinstance(self.rows, Tensor):
            chosen = rows[self.rows]
            rows[self.rows] = chosen.view(-1, flat.shape[-1]).addmm_(hidden, self.up).view_as(chosen)
        else:
            (flat if self.rows is None else rows[self.rows].view(-1, flat.shape[-1])).addmm_(hidden, self.up)
        return output


class _AddLowRank(torch.autograd.Function):
    """output + hidden @ up, in place: no linear needs its own output for its gradient.

    Autograd's own `addmm` would copy every output, and its in-place form every gradient.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, hidden: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, up)
        ctx.mark_dirty(output)
        output.view(-1, output.shape[-1]).addmm_(hidden, up)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        hidden, up = ctx.saved_tensors
        of_output, of_hidden, of_up = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            gradient if of_output else None,
            rows @ up.T if of_hidden else None,
            hidden.T @ rows if of_up else None,
        )


class DeltaSource(Protocol):
    """Something that corrects projections: resident stacks, or the stack that is being trained."""

    def on(self, responses: Tensor) -> DeltaSource:
        """The same for a batch [B, T] where `responses` [B, T] bool tells the tokens that predict one of a
        response: whoever acts there alone does. This is for those who act everywhere."""
        return self

    def corrections(self, layer: int, group: int, x: Tensor) -> Mapping[str, Sequence[Correction]]:
        """The corrections of every projection in one input group; each is called once, in forward order.

        Args:
            group: index into `INPUT_GROUPS`.
            x: [..., d_in], the group's shared input.
        """


class _Group:
    """The projections of one layer that share an input; asks the sources for their corrections once."""

    def __init__(self, layer: int, group: int) -> None:
        self.layer = layer
        self.group = group
        self.last = INPUT_GROUPS[group][-1]
        self._input: Tensor | None = None
        self._corrections: Sequence[Mapping[str, Sequence[Correction]]] = ()

    def corrected(self, projection: str, x: Tensor, output: Tensor, sources: Sequence[DeltaSource]) -> Tensor:
        if self._input is not x:
            self._corrections = [source.corrections(self.layer, self.group, x) for source in sources]
            self._input = x
        corrections = self._corrections
        if projection == self.last:
            # No activation lives on beyond its use. Gradient checkpointing ends a recomputation in the last
            # correction, by an exception: an input kept here would keep all that the layer has recomputed.
            self.clear()
        for found in corrections:
            for correction in found.get(projection, ()):
                output = correction(output)
        return output

    def clear(self) -> None:
        self._input = None
        self._corrections = ()


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
    def composed(self, *sources: DeltaSource, responses: Tensor | None = None) -> Iterator[None]:
        """Within the block, forwards of the base add the deltas of `sources`, and only of those.

        Args:
            responses: see `DeltaSource.on`; None where the weights of tokens say what acts on which.
        """
        before = self._sources
        self._sources = sources if responses is None else tuple(source.on(responses) for source in sources)
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
            return group.corrected(projection, args[0], output, self._sources)

        return add_deltas
