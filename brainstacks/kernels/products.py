"""The base's linears: y += W x for a group's panels and all tokens of a step.

A product is one compiled function per kind of weight (see `layers/panels.py`), called by its address: only
kinds that a model has are compiled.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import cfunc, njit, types

from brainstacks.kernels import generic
from brainstacks.kernels.layout import group_at, layer_at, linear_at, step_at
from brainstacks.kernels.team import PIECE, call
from brainstacks.kernels.tiles import ISA, KINDS, PANEL, tile

PRODUCT = types.void(*(types.int64,) * 14)
"""See `tiles._Tile` for the arguments; here `count` may be any number of tokens."""

FEW = 4
"""Tokens of a smaller tile than the largest."""

MOST_PANELS = 8
"""Panels of one piece of work, where there are few tokens."""


def product_address(kind: str) -> int:
    """Of the `PRODUCT` for weights of that kind; it is compiled when it is first asked for."""
    return int(_product(kind).address)


@cache  # which keeps what is compiled alive: an address does not
def _product(kind: str) -> Any:
    if ISA.lanes:
        return _tiled([name for name, _ in KINDS].index(kind), ISA.tokens)
    return cfunc(PRODUCT)(generic.product(generic.VALUES[kind], kind.startswith("fast")).py_func)


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
        out,
        out_step,
        blocks,
        chunks,
        count,
    ):
        t = 0
        while t < count:
            left = count - t
            x_, factors_, sums_ = x + t * x_step, factors + t * block_step, sums + t * block_step
            out_ = out + t * out_step
            if left == 1:
                tile(
                    kind, 1, codes, scales, offsets, levels, x_, x_step, factors_, sums_, block_step,
                    out_, out_step, blocks, chunks, left,
                )  # fmt: skip
            elif left <= FEW < most:
                tile(
                    kind, FEW, codes, scales, offsets, levels, x_, x_step, factors_, sums_, block_step,
                    out_, out_step, blocks, chunks, left,
                )  # fmt: skip
            else:
                tile(
                    kind, most, codes, scales, offsets, levels, x_, x_step, factors_, sums_, block_step,
                    out_, out_step, blocks, chunks, min(left, most),
                )  # fmt: skip
            t += most

    return product


@njit(cache=True)
def panels_of_piece(tokens):
    return max(1, min(MOST_PANELS, 2 * MOST_PANELS // tokens))


@njit(cache=True)
def product_pieces(group, tokens):
    some = panels_of_piece(tokens)
    return (group.panels + some - 1) // some


@njit(cache=True)
def _multiply(step, group, piece, tokens, out, out_width):
    """The products of a piece's panels, added to `out` [tokens, out_width] float32."""
    some = panels_of_piece(tokens)
    panel, end = piece * some, min(group.panels, (piece + 1) * some)
    first = 0
    for i in range(group.linears):
        linear = linear_at(step, group.first + i)
        while panel < end and panel - first < linear.panels:
            at = panel - first
            call(
                linear.product,
                linear.codes + at * linear.codes_step,
                linear.scales + at * linear.scales_step,
                linear.offsets + at * linear.scales_step if linear.offsets else 0,
                linear.levels,
                step.q if linear.fast else step.x,
                step.x_width if linear.fast else 4 * step.x_width,
                step.scale,
                step.zero if linear.fast else step.mass,
                4 * step.block_count,
                out + 4 * (linear.column + at * PANEL),
                4 * out_width,
                linear.blocks,
                linear.chunks,
                tokens,
            )
            panel += 1
        first += linear.panels


@njit(cache=True)
def target(step, index):
    """Where group `index` puts its outputs: the residual stream, where nothing is done to them before."""
    into = index % 4 in (1, 3) and not layer_at(step, index // 4).norms[index % 4]
    return (step.h, step.width) if into else (step.y, step.y_width)


@cfunc(PIECE, cache=True)
def products(context, index, piece):
    """One piece of group `index`."""
    step = step_at(context)
    out, width = target(step, index)
    _multiply(step, group_at(step, index), piece, step.tokens, out, width)


@cfunc(PIECE, cache=True)
def head(context, index, piece):
    """One piece of the head, group `index`: the logits of the wanted tokens."""
    step = step_at(context)
    _multiply(step, group_at(step, index), piece, step.wanted_count, step.logits, step.logits_width)
