"""Deltas on a base as hooks that see an input group as a whole: its projections, then all of their deltas.

A decoder may use a projection's output before it asks for the next one (a norm of queries, an activation):
deltas could not be added to all of them at once. With the first projection of a group, the hook therefore
computes the others too, by their own forwards, has the deltas added, and hands each out when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, nn

from brainstacks.layers.projections import INPUT_GROUPS, Site

Forward = Callable[[Tensor], Tensor]


class GroupDeltas(Protocol):
    """What adds deltas to the projections of an input group."""

    def before(self, layer: int, group: int, x: Tensor) -> None:
        """The group's projections are about to be computed from x [..., d_in]."""

    def add(self, layer: int, group: int, outputs: Sequence[Tensor]) -> None:
        """Add the deltas to the outputs [..., d_out] of all its projections, in place."""


class _Group:
    """The projections of one layer that share an input."""

    def __init__(self, hooks: GroupHooks, layer: int, group: int, modules: Sequence[nn.Module]) -> None:
        self._hooks, self._layer, self._group = hooks, layer, group
        self._first, *self._others = modules
        self._forwards: list[Forward] = [module.forward for module in self._others]
        self._input: Tensor | None = None
        self._outputs: list[Tensor | None] = [None] * len(self._others)

    def attach(self) -> list[Callable[[], None]]:
        """Returns what takes it off again."""
        for at, module in enumerate(self._others):
            module.forward = self._handing_out(at)
        handles = [
            self._first.register_forward_pre_hook(self._before),
            self._first.register_forward_hook(self._after),
        ]
        return [*(handle.remove for handle in handles), self._restore]

    def _restore(self) -> None:
        for module in self._others:
            del module.forward

    def _before(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self._hooks.deltas is not None:
            self._hooks.deltas.before(self._layer, self._group, args[0])

    def _after(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if self._hooks.deltas is not None:
            self._input = args[0]
            others = [forward(args[0]) for forward in self._forwards]
            self._hooks.deltas.add(self._layer, self._group, [output, *others])
            self._outputs = list(others)

    def _handing_out(self, at: int) -> Forward:
        def forward(x: Tensor) -> Tensor:
            if self._hooks.deltas is None:
                return self._forwards[at](x)
            output, self._outputs[at] = self._outputs[at], None
            if output is None or x is not self._input:
                first, name = INPUT_GROUPS[self._group][0], INPUT_GROUPS[self._group][1 + at]
                raise RuntimeError(
                    f"layer {self._layer}: {name} was given another input than {first}; the backend torch "
                    "computes such a decoder"
                )
            if at == len(self._outputs) - 1:
                self._input = None  # keep no activation alive beyond its use
            return output

        return forward


class GroupHooks:
    """The hooks of one base model.

    Args:
        sites: from `projections.find_sites`.

    Attributes:
        deltas: in force; None where the base computes alone.
    """

    def __init__(self, sites: Mapping[tuple[int, str], Site]) -> None:
        self.deltas: GroupDeltas | None = None
        self._sites = sites
        self._undo: list[Callable[[], None]] = []

    def attach(self) -> None:
        """Put the hooks on; does nothing when they are there."""
        for layer in sorted({layer for layer, _ in self._sites}) if not self._undo else ():
            for group, names in enumerate(INPUT_GROUPS):
                modules = [self._sites[layer, name].module for name in names]
                self._undo += _Group(self, layer, group, modules).attach()

    def detach(self) -> None:
        """Take them off; the model is what it was."""
        for undo in self._undo:
            undo()
        self._undo = []

    @contextmanager
    def adding(self, deltas: GroupDeltas | None) -> Iterator[None]:
        """Within the block, forwards of the base add `deltas`, and nothing else."""
        before, self.deltas = self.deltas, deltas
        try:
            yield
        finally:
            self.deltas = before
