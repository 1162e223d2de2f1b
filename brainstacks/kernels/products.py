"""The base's linears: y += W x for a group's panels and all tokens of a step.

A product is one compiled function per kind of weight (see `layers/panels.py`), called by its address: only
kinds that a model has are compiled.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import cfunc, types

from brainstacks.kernels import generic, internal
from brainstacks.kernels.atomics import call
from brainstacks.kernels.kinds import KINDS, tile
from brainstacks.kernels.layout import group_at, linear_at, step_at
from brainstacks.kernels.numbers import ZERO
from brainstacks.kernels.team import PIECE
from brainstacks.kernels.tiles import PANEL
from brainstacks.kernels.vectors import ISA

PRODUCT = types.void(*(types.int64,) * 18)
"""See `tiles.Tile` for the arguments; `count` may be any number of tokens."""

FEW = 4
"""Tokens of a smaller tile than the largest."""

AHEAD = 6144
"""Bytes before its use that a weight is fetched: about a panel, where the processor's own guess ends."""

FAR = 1 << 62
"""Behind every address."""

MOST_PANELS = 8
"""Panels of one piece of work."""

PIECES = 4
"""Least pieces for each thread, as far as there are panels."""


def product_address(kind: str) -> int:
    """Of the `PRODUCT` for weights of that kind; it is compiled when it is first asked for."""
    return int(_product(kind).address)


@cache  # which keeps what is compiled alive: an address does not
def _product(kind: str) -> Any:
    if ISA.lanes:
        return _tiled([name for name, _ in KINDS].index(kind), ISA.tokens)
    return cfunc(PRODUCT)(generic.product(kind).py_func)


def _tiled(kind: int, most: int) -> Any:
    @cfunc(PRODUCT, cache=True)
    def product(
        codes,
        scales,
        offsets,
        levels,
        x,
        x_step,
        factors,
        sums,
        block_step,
        start,
        out,
        out_step,
        blocks,
        chunks,
        rows,
        count,
        ahead,
        end,
    ):
        t = 0
        while t < count:
            left, rows_ = count - t, rows + 8 * t
            if left == 1:
                tile(
                    kind, 1, codes, scales, offsets, levels, x, x_step, factors, sums, block_step,
                    start, out, out_step, blocks, chunks, rows_, left, ahead, end,
                )  # fmt: skip
            elif left <= FEW < most:
                tile(
                    kind, FEW, codes, scales, offsets, levels, x, x_step, factors, sums, block_step,
                    start, out, out_step, blocks, chunks, rows_, left, ahead, end,
                )  # fmt: skip
            else:
                tile(
                    kind, most, codes, scales, offsets, levels, x, x_step, factors, sums, block_step,
                    start, out, out_step, blocks, chunks, rows_, min(left, most), ahead, end,
                )  # fmt: skip
            t += most

    return product


@internal
def _panels_of_piece(step, group):
    return max(1, min(MOST_PANELS, group.panels // (PIECES * step.threads)))


@internal
def product_pieces(step, group):
    some = _panels_of_piece(step, group)
    return (group.panels + some - 1) // some


@internal
def range_of(step, group, piece, done, linear):
    """The panels (lowest, highest) of a linear that belong to a piece; `done` of the group come before."""
    some = _panels_of_piece(step, group)
    first, last = piece * some - done, (piece + 1) * some - done
    return max(0, first), min(linear.panels, last)


@internal
def multiply(step, linear, lowest, highest, tokens, start, out, out_width):
    """out [tokens, out_width] float32 = the products of some panels: 16 columns each.

    Args:
        start: address of what is added to, float32, for all panels of the linear; 0 for what is in `out`.
    """
    for panel in range(lowest, highest):
        call(
            linear.product,
            linear.codes + panel * linear.codes_step,
            linear.scales + panel * linear.scales_step,
            linear.offsets + panel * linear.scales_step if linear.offsets else 0,
            linear.levels,
            step.q if linear.fast else step.x,
            step.x_width if linear.fast else 4 * step.x_width,
            step.scale,
            step.zero if linear.fast else step.mass,
            4 * step.block_count,
            start + 4 * panel * PANEL if start else 0,
            out + 4 * panel * PANEL,
            4 * out_width,
            linear.blocks,
            linear.chunks,
            step.order,
            tokens,
            AHEAD,
            FAR,
        )


@cfunc(PIECE, cache=True)
def head(context, index, piece):
    """One piece of the head, group `index`: the logits of the wanted tokens."""
    step = step_at(context)
    group = group_at(step, index)
    linear = linear_at(step, group.first)
    lowest, highest = range_of(step, group, piece, ZERO, linear)
    multiply(step, linear, lowest, highest, step.wanted_count, group.bias, step.logits, step.logits_width)
