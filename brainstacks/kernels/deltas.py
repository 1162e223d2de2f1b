"""Deltas of a step, compiled: per token only the stacks that it uses, and of each the experts that its gate
keeps.

The maths is that of `layers.delta` (`gate_weights`, `gated_hidden`), in two phases per group of projections
that share an input:

    down:  l = x G^T;  g = softmax(top-K of l);  h = w * s * g_e * (A_e x)   for the K chosen experts e
    up:    out += h B_all

Weights lie in panels as the base's do (see `layers/delta_panels.py`) and go through the same products.
Columns of A_all come in units that are chosen together: an expert, or a whole round where experts have few
columns. The tokens that use a unit are gathered, so that nothing is computed for the others; a token's own
sums are added in an order that does not depend on them.
"""

from __future__ import annotations

import numpy as np
from numba import carray, cfunc, njit

from brainstacks.kernels.activations import round_block
from brainstacks.kernels.layout import LINEAR, ROUND, floats, group_at, linear_at, step_at
from brainstacks.kernels.products import target
from brainstacks.kernels.team import PIECE, as_pointer, call
from brainstacks.kernels.tiles import PANEL

SPAN = 64
"""Tokens that one piece takes."""

MOST_PANELS = 16
"""Panels of outputs that one piece of `up` takes."""

GATE, DOWN, UP = 0, 1, 2
"""Of the five linears of a round in a group: the gates and A of all its projections, and each one's B."""


@njit(cache=True)
def _spans(tokens):
    return (tokens + SPAN - 1) // SPAN


@njit(cache=True)
def down_pieces(step, group):
    """A piece is a span of tokens, a round and a projection."""
    return _spans(step.tokens) * step.rounds * group.linears


@njit(cache=True)
def up_pieces(step, group):
    """A piece is a span of tokens and some panels of the group's outputs."""
    return _spans(step.tokens) * ((group.panels + MOST_PANELS - 1) // MOST_PANELS)


@njit(cache=True)
def _shape(step, g):
    return carray(as_pointer(step.round_table), (step.rounds,), ROUND)[g]


@njit(cache=True)
def _linear(step, index, g, which):
    """Of round g in group `index`; its product is 0 where the stack has no such projection."""
    at = (index * step.rounds + g) * 5 + which
    return carray(as_pointer(step.delta_table), (at + 1,), LINEAR)[at]


@njit(cache=True)
def _gates(step, projection, g):
    """[T, experts] of a round for the projection-th of a group; 0 where an expert is not used."""
    at = (projection * step.rounds + g) * step.tokens * step.experts
    return floats(step.gates + 4 * at, step.tokens, step.experts)


@njit(cache=True)
def _low(step, projection, g, size):
    """Address of h [T, columns] of a round: int8, or float32 where products are exact (`size` bytes)."""
    return step.low + size * (projection * step.rounds + g) * step.tokens * step.columns


@njit(cache=True)
def _low_scales(step, projection, g):
    """Addresses of the scales and zeros [T, experts] of h, one per unit."""
    at = 4 * (projection * step.rounds + g) * step.tokens * step.experts
    return step.low_scale + at, step.low_zero + at


@njit(cache=True)
def _choose(logits, gates, top_k):
    """softmax of the top_k largest logits [N] into gates [N], zero elsewhere; the first of equals wins."""
    n = logits.shape[0]
    gates[:] = np.float32(-1.0)  # not chosen yet
    highest = np.float32(0.0)
    total = np.float32(0.0)
    for k in range(top_k):
        best = -1
        for e in range(n):
            if gates[e] < 0.0 and (best < 0 or logits[e] > logits[best]):
                best = e
        if k == 0:
            highest = logits[best]
        share = np.exp(logits[best] - highest)
        if not share >= 0.0:
            share = np.float32(np.nan)  # a logit that is no number must show in the output
        gates[best] = share
        total += share
    for e in range(n):
        gates[e] = np.float32(0.0) if gates[e] == -1.0 else gates[e] / total


@njit(cache=True)
def _copy(source, step, rows, count, width):
    """Rows of `width` bytes at `source`, `step` bytes apart -> [count, width] uint8."""
    out = np.empty((count, width), np.uint8)
    for i in range(count):
        out[i] = carray(as_pointer(source + rows[i] * step), (width,), np.uint8)
    return out


@njit(cache=True)
def _product(linear, panel, first_block, blocks, x, x_step, scale, zero, scale_step, out, out_step, count):
    """out [count, 16] += one panel over some of its blocks, for inputs that begin at the first of them."""
    size = linear.codes_step // linear.blocks  # of a block of a panel
    call(
        linear.product,
        linear.codes + panel * linear.codes_step + first_block * size,
        linear.scales + panel * linear.scales_step + first_block * 4 * PANEL,
        0,
        0,
        x,
        x_step,
        scale,
        zero,
        scale_step,
        out,
        out_step,
        blocks,
        linear.chunks,
        count,
    )


@njit(cache=True)
def _gate(step, group, index, projection, g, users, count):
    """Choose the experts of one projection for the tokens `users[:count]`."""
    linear, shape = _linear(step, index, g, GATE), _shape(step, g)
    logits = np.zeros((count, linear.panels * PANEL), np.float32)
    x, x_step, scale, zero = _inputs(step, linear.fast, users, count)
    for panel in range(linear.panels):
        out = logits.ctypes.data + 4 * panel * PANEL
        _product(linear, panel, 0, linear.blocks, x.ctypes.data, x_step, scale.ctypes.data, zero.ctypes.data,
                 4 * step.block_count, out, logits.strides[0], count)  # fmt: skip
    gates = _gates(step, projection, g)
    at = linear.column + projection * shape.experts
    for i in range(count):
        _choose(logits[i, at : at + shape.experts], gates[users[i], : shape.experts], shape.top_k)


@njit(cache=True)
def _inputs(step, fast, rows, count):
    """The group's input of the tokens `rows[:count]`: values, bytes of a row, scales and zeros."""
    size = 1 if fast else 4
    x = _copy(step.q if fast else step.x, size * step.x_width, rows, count, size * step.x_width)
    scale = _copy(step.scale, 4 * step.block_count, rows, count if fast else 0, 4 * step.block_count)
    zero = _copy(step.zero, 4 * step.block_count, rows, count if fast else 0, 4 * step.block_count)
    return x, size * step.x_width, scale, zero


@njit(cache=True)
def _uses(gates, shape, unit):
    if shape.units == 1:
        for e in range(shape.experts):  # noqa: SIM110 -- numba knows no any()
            if gates[e] != 0.0:
                return True
        return False
    return gates[unit] != 0.0


@njit(cache=True)
def _low_unit(step, group, index, projection, g, unit, users, count):
    """h of one unit, for those of the tokens `users[:count]` that use it."""
    linear, shape = _linear(step, index, g, DOWN), _shape(step, g)
    gates, weights = _gates(step, projection, g), floats(step.weights, step.rounds, step.tokens)[g]
    some = np.empty(SPAN, np.int64)
    chosen = 0
    for i in range(count):
        if _uses(gates[users[i]], shape, unit):
            some[chosen] = users[i]
            chosen += 1
    if not chosen:
        return
    width = shape.unit
    values = np.zeros((chosen, width), np.float32)
    x, x_step, scale, zero = _inputs(step, linear.fast, some, chosen)
    panels = width // PANEL
    for i in range(panels):
        panel = (projection * shape.units + unit) * panels + i
        out = values.ctypes.data + 4 * i * PANEL
        _product(linear, panel, 0, linear.blocks, x.ctypes.data, x_step, scale.ctypes.data, zero.ctypes.data,
                 4 * step.block_count, out, values.strides[0], chosen)  # fmt: skip
    experts = shape.experts // shape.units
    low_scale, low_zero = _low_scales(step, projection, g)
    for i in range(chosen):
        t = some[i]
        row = values[i]
        for e in range(experts):
            factor = gates[t, unit * experts + e] * weights[t]
            for r in range(e * shape.rank, (e + 1) * shape.rank):
                row[r] *= factor
        at = t * step.columns + unit * width
        if linear.fast:
            q = carray(as_pointer(_low(step, projection, g, 1) + at), (width,), np.int8)
            scales = carray(as_pointer(low_scale + 4 * t * step.experts), (step.experts,), np.float32)
            zeros = carray(as_pointer(low_zero + 4 * t * step.experts), (step.experts,), np.int32)
            scales[unit], zeros[unit] = round_block(row, q, 0, width)
        else:
            carray(as_pointer(_low(step, projection, g, 4) + 4 * at), (width,), np.float32)[:] = row


@cfunc(PIECE, cache=True)
def down(context, index, piece):
    step = step_at(context)
    group = group_at(step, index)
    projection, rest = piece % group.linears, piece // group.linears
    g, first = rest % step.rounds, rest // step.rounds * SPAN
    last = min(step.tokens, first + SPAN)
    shape = _shape(step, g)
    gates = _gates(step, projection, g)
    gates[first:last] = np.float32(0.0)
    if not _linear(step, index, g, UP + projection).product:
        return
    weights = floats(step.weights, step.rounds, step.tokens)[g]
    users = np.empty(SPAN, np.int64)
    count = 0
    for t in range(first, last):
        if weights[t] != 0.0:
            users[count] = t
            count += 1
    if count:
        _gate(step, group, index, projection, g, users, count)
    for unit in range(shape.units):
        _low_unit(step, group, index, projection, g, unit, users, count)


@njit(cache=True)
def _up_unit(step, index, projection, column, g, unit, first, last, lowest, highest):
    """out += h B of one unit, for those of the tokens first..last that use it, panels lowest..highest."""
    shape, linear = _shape(step, g), _linear(step, index, g, UP + projection)
    gates = _gates(step, projection, g)
    some = np.empty(SPAN, np.int64)
    count = 0
    for t in range(first, last):
        if _uses(gates[t], shape, unit):
            some[count] = t
            count += 1
    if not count:
        return
    size = 1 if linear.fast else 4
    low_scale, low_zero = _low_scales(step, projection, g)
    out, width = target(step, index)
    x = _copy(_low(step, projection, g, size) + size * unit * shape.unit, size * step.columns, some, count,
              size * shape.unit)  # fmt: skip
    scale = _copy(low_scale + 4 * unit, 4 * step.experts, some, count, 4)
    zero = _copy(low_zero + 4 * unit, 4 * step.experts, some, count, 4)
    alone = some[count - 1] - some[0] == count - 1  # neighbours: their outputs are too
    found = np.empty((count, PANEL), np.float32)
    rows = floats(out, step.tokens, width)
    for panel in range(lowest, highest):
        at = column + panel * PANEL
        if alone:
            _product(linear, panel, unit, 1, x.ctypes.data, x.strides[0], scale.ctypes.data,
                     zero.ctypes.data, 4, out + 4 * (some[0] * width + at), 4 * width, count)  # fmt: skip
            continue
        for i in range(count):
            found[i] = rows[some[i], at : at + PANEL]
        _product(linear, panel, unit, 1, x.ctypes.data, x.strides[0], scale.ctypes.data, zero.ctypes.data, 4,
                 found.ctypes.data, found.strides[0], count)  # fmt: skip
        for i in range(count):
            rows[some[i], at : at + PANEL] = found[i]


@cfunc(PIECE, cache=True)
def up(context, index, piece):
    step = step_at(context)
    group = group_at(step, index)
    spans = _spans(step.tokens)
    first = piece % spans * SPAN
    last = min(step.tokens, first + SPAN)
    begin = piece // spans * MOST_PANELS
    end = min(group.panels, begin + MOST_PANELS)
    done = 0  # panels of the projections before
    for projection in range(group.linears):
        linear = linear_at(step, group.first + projection)
        lowest, highest = max(begin, done) - done, min(end, done + linear.panels) - done
        done += linear.panels
        if lowest < highest:
            for g in range(step.rounds):
                if _linear(step, index, g, UP + projection).product:
                    for unit in range(_shape(step, g).units):
                        _up_unit(
                            step, index, projection, linear.column, g, unit, first, last, lowest, highest
                        )
