"""One forward of all tokens of a step, from embeddings to logits: the order of the phases, and what
computes them.

`drive` below is the model: every line opens a phase, whose pieces the team shares (see `team.py`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import cfunc

from brainstacks.kernels import activations, deltas, internal, products
from brainstacks.kernels.activations import rotate_work, token_pieces
from brainstacks.kernels.attention import attend_work
from brainstacks.kernels.deltas import down_pieces, gate_pieces
from brainstacks.kernels.layout import floats, group_at, layer_at, linear_at, step_at
from brainstacks.kernels.numbers import ZERO, copy
from brainstacks.kernels.products import multiply, product_pieces, range_of
from brainstacks.kernels.team import DRIVER, PIECE, run


@internal
def _linear(at, step, index):
    """The projections of a group, and their deltas."""
    group = group_at(step, index)
    run(at, step.gate, index, gate_pieces(step, group))
    run(at, step.down, index, down_pieces(step, group))
    run(at, step.products, index, product_pieces(step, group))
    if index % 2 and layer_at(step, index // 4).norms[index % 4]:
        run(at, step.after, index, token_pieces(step.tokens))


@cfunc(PIECE, cache=True)
def linear(context, index, piece):
    """Some panels of group `index`: the base's products, and what stacks add to them."""
    step = step_at(context)
    group = group_at(step, index)
    out, width, start = step.y, step.y_width, group.bias
    if index % 2 and not layer_at(step, index // 4).norms[index % 4]:
        out, width, start = step.h, step.width, 0  # nothing is done to them before the residual stream
    done = 0  # panels of the linears before
    for i in range(group.linears):
        one = linear_at(step, group.first + i)
        lowest, highest = range_of(step, group, piece, done, one)
        if lowest < highest:
            to = out + 4 * one.column
            for g in range(step.rounds):
                deltas.fetch_up(step, index, g, i, lowest, highest)
            multiply(
                step, one, lowest, highest, step.tokens, start + 4 * one.column if start else 0, to, width
            )
            for g in range(step.rounds):
                deltas.add(step, index, g, i, lowest, highest, to, width)
        done += one.panels


@internal
def _keep(step):
    """The router reads this layer's input."""
    size = step.tokens * step.width
    copy(floats(step.h, 1, size)[0], ZERO, floats(step.mid, 1, size)[0], ZERO, size)


@cfunc(DRIVER, cache=True)
def drive(at, context):
    """h [T, width] holds the embeddings; see `layout.STEP`."""
    step = step_at(context)
    for layer in range(step.layers):
        index = 4 * layer
        if step.mid and layer == step.middle:
            _keep(step)
        run(at, step.norm, index, token_pieces(step.tokens))
        _linear(at, step, index)
        run(at, step.rotate, index, token_pieces(step.tokens))
        run(at, step.attend, index, step.tile_count * step.kv_heads)
        run(at, step.joined, index + 1, token_pieces(step.tokens))
        _linear(at, step, index + 1)
        run(at, step.norm, index + 2, token_pieces(step.tokens))
        _linear(at, step, index + 2)
        run(at, step.activate, index + 3, token_pieces(step.tokens))
        _linear(at, step, index + 3)
    if step.mid:
        run(at, step.last_hidden, ZERO, token_pieces(step.tokens))
    head = 4 * step.layers
    if step.wanted_count:
        run(at, step.final, head, token_pieces(step.wanted_count))
        run(at, step.head, head, product_pieces(step, group_at(step, head)))


# Each of these is compiled for the one dtype that is in use. They are functions of it alone: a compiled
# function that was made with another one as an argument would not be found again on disk.


def _rotate(dtype: Any) -> Any:
    @cfunc(PIECE, cache=True)
    def rotate(context, index, piece):
        rotate_work(context, index, piece, dtype)

    return rotate


def _attend(dtype: Any) -> Any:
    @cfunc(PIECE, cache=True)
    def attend(context, index, piece):
        attend_work(context, index, piece, dtype)

    return attend


def bodies(wide: bool) -> dict[str, int]:
    """Field of `STEP` -> the address of what computes a piece of that phase.

    Args:
        wide: keys and values are float32; else bfloat16.
    """
    return {field: int(function.address) for field, function in _compiled(wide).items()}


@cache  # which keeps what is compiled alive: an address does not
def _compiled(wide: bool) -> dict[str, Any]:
    dtype = np.float32 if wide else np.uint16
    return {
        "norm": activations.norm,
        "products": linear,
        "gate": deltas.gate,
        "down": deltas.down,
        "rotate": _rotate(dtype),
        "attend": _attend(dtype),
        "joined": activations.joined,
        "activate": activations.activate,
        "after": activations.after,
        "final": activations.final,
        "last_hidden": activations.last_hidden,
        "head": products.head,
    }
