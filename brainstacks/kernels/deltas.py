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
from brainstacks.kernels.numbers import copy, fill
from brainstacks.kernels.products import target
from brainstacks.kernels.team import PIECE, as_pointer, call
from brainstacks.kernels.tiles import PANEL

SPAN = 64
"""Tokens that one piece takes."""

MOST_PANELS = 16
"""Panels of outputs that one piece of `up` takes."""

DOWN, UP, LINEARS = 0, 3, 6
"""Of the linears of a round in a group: each projection's A and gate together, then each one's B."""


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
    at = (index * step.rounds + g) * LINEARS + which
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
    fill(gates, 0, n, np.float32(-1.0))  # not chosen yet
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
def _gathered(source, step, rows, count, width, into):
    """Rows of `width` bytes, `step` apart from `source` on, side by side in `into`; their address."""
    words = width // 4
    for i in range(count):
        row = carray(as_pointer(source + rows[i] * step), (words,), np.int32)
        for j in range(np.uintp(words)):
            into[i * words + j] = row[j]
    return np.int64(into.ctypes.data)


@njit(cache=True)
def _neighbours(rows, count):
    return rows[count - 1] - rows[0] == count - 1


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
def _uses(gates, shape, unit):
    if shape.units == 1:
        for e in range(shape.experts):  # noqa: SIM110 -- numba knows no any()
            if gates[e] != 0.0:
                return True
        return False
    return gates[unit] != 0.0


@njit(cache=True)
def _project(step, group, linear, panel, panels, rows, count, out):
    """out [count, 16 * panels] = some panels of A or gate, times the inputs of the tokens `rows[:count]`."""
    size = 1 if linear.fast else 4
    blocks = 4 * linear.blocks
    x, x_step = step.q if linear.fast else step.x, size * step.x_width
    scale, zero, scale_step = step.scale, step.zero, 4 * step.block_count
    held = np.empty(0, np.int32)
    if _neighbours(rows, count):
        x, scale, zero = x + rows[0] * x_step, scale + rows[0] * scale_step, zero + rows[0] * scale_step
    else:
        width = size * group.d_in
        held = np.empty(count * (width + 2 * blocks) // 4, np.int32)
        at, after = count * width // 4, count * (width + blocks) // 4
        x, x_step = _gathered(x, x_step, rows, count, width, held), width
        scale = _gathered(scale, scale_step, rows, count, blocks, held[at:])
        zero, scale_step = _gathered(zero, scale_step, rows, count, blocks, held[after:]), blocks
    for i in range(count):
        fill(out[i], 0, panels * PANEL, np.float32(0.0))
    for i in range(panels):
        to = out.ctypes.data + 4 * i * PANEL
        _product(
            linear, panel + i, 0, linear.blocks, x, x_step, scale, zero, scale_step, to, out.strides[0], count
        )
    return held.size  # which keeps what was gathered until here


@njit(cache=True)
def _keep(step, linear, projection, g, unit, rows, count, values):
    """h of one unit of the tokens `rows[:count]`: A x of `values`, gated and weighted, as `up` reads it."""
    shape = _shape(step, g)
    gates, weights = _gates(step, projection, g), floats(step.weights, step.rounds, step.tokens)[g]
    experts, width = shape.experts // shape.units, shape.unit
    low_scale, low_zero = _low_scales(step, projection, g)
    for i in range(count):
        t, row = rows[i], values[i]
        for e in range(experts):
            factor = gates[t, unit * experts + e] * weights[t]
            for r in range(e * shape.rank, (e + 1) * shape.rank):
                row[r] *= factor
        fill(row, experts * shape.rank, width, np.float32(0.0))
        at = t * step.columns + unit * width
        if linear.fast:
            q = carray(as_pointer(_low(step, projection, g, 1) + at), (width,), np.int8)
            scales = carray(as_pointer(low_scale + 4 * t * step.experts), (step.experts,), np.float32)
            zeros = carray(as_pointer(low_zero + 4 * t * step.experts), (step.experts,), np.int32)
            scales[unit], zeros[unit] = round_block(row, q, 0, width)
        else:
            low = carray(as_pointer(_low(step, projection, g, 4) + 4 * at), (width,), np.float32)
            copy(row, 0, low, 0, width)


@cfunc(PIECE, cache=True)
def down(context, index, piece):
    step = step_at(context)
    group = group_at(step, index)
    projection, rest = piece % group.linears, piece // group.linears
    g, first = rest % step.rounds, rest // step.rounds * SPAN
    last = min(step.tokens, first + SPAN)
    shape, linear = _shape(step, g), _linear(step, index, g, DOWN + projection)
    gates = _gates(step, projection, g)
    for t in range(first, last):
        fill(gates[t], 0, step.experts, np.float32(0.0))
    weights = floats(step.weights, step.rounds, step.tokens)[g]
    users, count = np.empty(SPAN, np.int64), 0
    for t in range(first, last):
        if weights[t] != 0.0:
            users[count] = t
            count += 1
    if not linear.product or not count:
        return
    per_unit = shape.unit // PANEL
    if shape.units == 1:  # the gate lies behind the columns of A, in the same panels
        values = np.empty((count, linear.panels * PANEL), np.float32)
        _project(step, group, linear, 0, linear.panels, users, count, values)
        behind = shape.experts * shape.rank
        for i in range(count):
            _choose(values[i, behind : behind + shape.experts], gates[users[i], : shape.experts], shape.top_k)
        _keep(step, linear, projection, g, 0, users, count, values)
        return
    before = shape.units * per_unit  # panels of A
    logits = np.empty((count, (linear.panels - before) * PANEL), np.float32)
    _project(step, group, linear, before, linear.panels - before, users, count, logits)
    for i in range(count):
        _choose(logits[i, : shape.experts], gates[users[i], : shape.experts], shape.top_k)
    some, values = np.empty(SPAN, np.int64), np.empty((count, shape.unit), np.float32)
    for unit in range(shape.units):
        chosen = 0
        for i in range(count):
            if _uses(gates[users[i]], shape, unit):
                some[chosen] = users[i]
                chosen += 1
        if chosen:
            _project(step, group, linear, unit * per_unit, per_unit, some, chosen, values)
            _keep(step, linear, projection, g, unit, some, chosen, values)


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
    x, x_step = _low(step, projection, g, size) + size * unit * shape.unit, size * step.columns
    scale, zero, scale_step = low_scale + 4 * unit, low_zero + 4 * unit, 4 * step.experts
    out, width = target(step, index)
    if _neighbours(some, count):
        x, out = x + some[0] * x_step, out + 4 * some[0] * width
        scale, zero = scale + some[0] * scale_step, zero + some[0] * scale_step
        for panel in range(lowest, highest):
            to = out + 4 * (column + panel * PANEL)
            _product(linear, panel, unit, 1, x, x_step, scale, zero, scale_step, to, 4 * width, count)
        return
    bytes_ = size * shape.unit
    held = np.empty(count * (bytes_ + 8) // 4, np.int32)
    at, after = count * bytes_ // 4, count * (bytes_ + 4) // 4
    x = _gathered(x, x_step, some, count, bytes_, held)
    scale = _gathered(scale, scale_step, some, count, 4, held[at:])
    zero = _gathered(zero, scale_step, some, count, 4, held[after:])
    found = np.empty((count, PANEL), np.float32)
    rows = floats(out, step.tokens, width)
    for panel in range(lowest, highest):
        to = column + panel * PANEL
        for i in range(count):
            copy(rows[some[i]], to, found[i], 0, PANEL)
        _product(linear, panel, unit, 1, x, bytes_, scale, zero, 4, found.ctypes.data, 4 * PANEL, count)
        for i in range(count):
            copy(found[i], 0, rows[some[i]], to, PANEL)
    held[0] = 0  # which keeps what was gathered until here


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
