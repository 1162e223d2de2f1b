"""Deltas of a step, compiled: per token only the stacks that it uses, and of each the experts that its gate
keeps.

The maths is that of `layers.delta` (`gate_weights`, `gated_hidden`), in up to three phases per group of
projections that share an input:

    gate:  l = x G^T;  g = softmax(top-K of l)
    down:  h = w * s * g_e * (A_e x)                 for the K chosen experts e
    add:   out += h B_all                            right after the base's product, while out is in the cache

Columns of A_all come in units that are chosen together: an expert, or a whole round where experts have few
columns; the gates of such a round lie in A's panels, and `gate` does what `down` would. A token's own sums
are added in an order that does not depend on the others.
"""

from __future__ import annotations

import numpy as np
from numba import carray, cfunc

from brainstacks.kernels import internal
from brainstacks.kernels.activations import round_block
from brainstacks.kernels.atomics import as_pointer, call
from brainstacks.kernels.layout import GATES, down_at, floats, group_at, round_at, step_at, up_at
from brainstacks.kernels.numbers import ZERO, fetch, fill, room
from brainstacks.kernels.team import PIECE
from brainstacks.kernels.tiles import PANEL

AHEAD = 2048
"""Bytes of A before its use that one is fetched."""

SPAN = 64
"""Tokens that one piece takes."""


@internal
def _spans(tokens):
    return (tokens + SPAN - 1) // SPAN


@internal
def gate_pieces(step, group):
    """A piece is a span of tokens, a round and a projection."""
    return _spans(step.tokens) * step.rounds * group.linears


@internal
def down_pieces(step, group):
    """A piece is a span of tokens, a round, a projection and a unit; none where `gate` does it all."""
    return 0 if step.units < 2 or _at_once(step) else gate_pieces(step, group) * step.units


@internal
def _at_once(step):
    """Whether there are rounds enough for all threads, so that a round's A can follow its gates at once."""
    return _spans(step.tokens) * step.rounds >= 2 * step.threads


@internal
def _weights(step, g):
    """[T] of a round; 0 where a token does not use its stack."""
    return floats(step.weights, step.tokens, step.rounds)[:, g]


@internal
def _at(step, address, projection, g, width):
    """Address of [T, width] float32 of a round for the projection-th of a group."""
    return address + 4 * (projection * step.rounds + g) * step.tokens * width


@internal
def _rows(step, address, projection, g, width):
    return floats(_at(step, address, projection, g, width), step.tokens, width)


@internal
def _gates(step, projection, g):
    """[T, experts]; 0 where an expert is not used."""
    return _rows(step, step.gates, projection, g, step.experts)


@internal
def _choose(logits, gates, top_k):
    """softmax of the top_k largest logits [N] into gates [N], zero elsewhere; the first of equals wins."""
    n = logits.shape[0]
    fill(gates, ZERO, n, np.float32(-1.0))  # not chosen yet
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


@internal
def _project(step, layer, linear, first, panels, rows, count, out, out_width):
    """out [T, out_width] = some panels of A or gates, times the inputs of the tokens `rows[:count]`."""
    for panel in range(panels):
        codes = linear.codes + layer * linear.codes_layer + (first + panel) * linear.codes_step
        scales = linear.scales + layer * linear.scales_layer + (first + panel) * linear.scales_step
        fetch(codes, min(AHEAD, linear.codes_step))
        fetch(scales, linear.scales_step)
        call(
            linear.product,
            codes,
            scales,
            0,
            0,
            step.q if linear.fast else step.x,
            step.x_width if linear.fast else 4 * step.x_width,
            step.scale,
            step.zero,
            4 * step.block_count,
            step.nothing,
            out + 4 * PANEL * panel,
            4 * out_width,
            linear.blocks,
            linear.chunks,
            rows.ctypes.data,
            count,
            AHEAD,
            codes + linear.codes_step - 64,
        )


@internal
def _keep(step, linear, projection, g, unit, rows, count):
    """h of one unit of the tokens `rows[:count]`: A x, gated and weighted, as `add` reads it."""
    shape = round_at(step, g)
    gates, weights = _gates(step, projection, g), _weights(step, g)
    experts = shape.experts // shape.units
    inner = _rows(step, step.inner, projection, g, step.inner_width)
    at = (projection * step.rounds + g) * step.tokens
    q = carray(as_pointer(step.low + at * step.columns), (step.tokens, step.columns), np.int8)
    scales = _rows(step, step.low_scale, projection, g, step.units)
    zeros = carray(as_pointer(step.low_zero + 4 * at * step.units), (step.tokens, step.units), np.int32)
    for i in range(count):
        t = rows[i]
        h = inner[t, unit * shape.panels * PANEL :]
        for e in range(experts):
            factor = gates[t, unit * experts + e] * weights[t]
            for r in range(e * shape.rank, (e + 1) * shape.rank):
                h[r] *= factor
        fill(h, experts * shape.rank, shape.unit, np.float32(0.0))
        if linear.fast:
            scales[t, unit], zeros[t, unit] = round_block(h, q[t, unit * shape.unit :], ZERO, shape.unit)


@internal
def _expert(step, index, g, projection, unit, first, last):
    """h of one unit, for those of the tokens first..last whose gates keep it."""
    shape, linear = round_at(step, g), down_at(step, index, g, projection)
    if not linear.product:
        return
    gates = _gates(step, projection, g)
    users, count = carray(as_pointer(room(SPAN)), (SPAN,), np.int64), ZERO
    for t in range(first, last):
        if gates[t, unit] != 0.0:
            users[count] = t
            count += 1
    if count:
        at = unit * shape.panels
        out = _at(step, step.inner, projection, g, step.inner_width) + 4 * PANEL * at
        _project(step, index // 4, linear, at, shape.panels, users, count, out, step.inner_width)
        _keep(step, linear, projection, g, unit, users, count)


@cfunc(PIECE, cache=True)
def gate(context, index, piece):
    """Choose the experts of a span of tokens; where a round is one unit, all of h besides."""
    step = step_at(context)
    group = group_at(step, index)
    projection, rest = piece % group.linears, piece // group.linears
    g, first = rest % step.rounds, rest // step.rounds * SPAN
    last = min(step.tokens, first + SPAN)
    shape, weights = round_at(step, g), _weights(step, g)
    whole = shape.units == 1
    if not whole and projection:
        return  # the first piece chooses for all projections
    users, count = carray(as_pointer(room(SPAN)), (SPAN,), np.int64), ZERO
    for t in range(first, last):
        if weights[t] != 0.0:
            users[count] = t
            count += 1
    linear = down_at(step, index, g, projection if whole else GATES)
    logits, width = _at(step, step.choices, ZERO, g, step.choice_width), step.choice_width
    if whole:
        logits, width = _at(step, step.inner, projection, g, step.inner_width), step.inner_width
    if linear.product and count:
        _project(step, index // 4, linear, ZERO, linear.panels, users, count, logits, width)
    for which in range(projection, projection + 1 if whole else group.linears):
        gates = _gates(step, which, g)
        for t in range(first, last):
            fill(gates[t], ZERO, step.experts, np.float32(0.0))
        at = shape.experts * (shape.rank if whole else which)
        if down_at(step, index, g, which).product:
            for i in range(count):
                found = floats(logits + 4 * users[i] * width, 1, at + shape.experts)[0]
                _choose(found[at:], gates[users[i], : shape.experts], shape.top_k)
    if whole and linear.product:
        _keep(step, linear, projection, g, ZERO, users, count)
    if not whole and _at_once(step):
        for which in range(group.linears):
            for unit in range(shape.units):
                _expert(step, index, g, which, unit, first, last)


@cfunc(PIECE, cache=True)
def down(context, index, piece):
    """A of an expert, where each has a piece of its own."""
    step = step_at(context)
    group = group_at(step, index)
    unit, rest = piece % step.units, piece // step.units
    projection, rest = rest % group.linears, rest // group.linears
    g, first = rest % step.rounds, rest // step.rounds * SPAN
    if 1 < round_at(step, g).units > unit:
        _expert(step, index, g, projection, unit, first, min(step.tokens, first + SPAN))


@internal
def _uses(step, g, projection, unit):
    """Where a unit's use by each token is said, float32, 0 for none: the first one's address, the step."""
    if round_at(step, g).units == 1:
        return step.weights + 4 * g, 4 * step.rounds
    return _at(step, step.gates, projection, g, step.experts) + 4 * unit, 4 * step.experts


@internal
def _used(uses, stride, t):
    return floats(uses + t * stride, 1, 1)[0, 0] != 0.0


@internal
def fetch_up(step, index, g, projection, lowest, highest):
    """Ask for what `add` will read."""
    b = up_at(step, index, g, projection)
    if b.product:
        for unit in range(round_at(step, g).units):
            uses, stride = _uses(step, g, projection, unit)
            for t in range(step.tokens):
                if _used(uses, stride, t):
                    at = b.weights + index // 4 * b.layer_step + unit * b.unit_step
                    fetch(at + lowest * b.panel_step, (highest - lowest) * b.panel_step)
                    if b.scales:
                        fetch(at + b.scales + 2 * PANEL * lowest, 2 * PANEL * (highest - lowest))
                    break


@internal
def add(step, index, g, projection, lowest, highest, out, width):
    """out [T, width] += h B of a round, for panels lowest..highest of a projection.

    Unit by unit, so that all tokens find a unit's panels in the cache.
    """
    b, shape = up_at(step, index, g, projection), round_at(step, g)
    if not b.product:
        return
    at = (projection * step.rounds + g) * step.tokens
    for unit in range(shape.units):
        uses, stride = _uses(step, g, projection, unit)
        low, low_step = step.low + at * step.columns + unit * shape.unit, step.columns
        if not b.fast:
            low = step.inner + 4 * (at * step.inner_width + unit * shape.panels * PANEL)
            low_step = 4 * step.inner_width
        weights = b.weights + index // 4 * b.layer_step + unit * b.unit_step
        factor = 4 * (at * step.units + unit)
        for t in range(step.tokens):
            if _used(uses, stride, t):
                factor_at = factor + 4 * t * step.units
                call(
                    b.product,
                    weights + lowest * b.panel_step,
                    weights + b.scales + 2 * PANEL * lowest if b.scales else 0,
                    highest - lowest,
                    low + t * low_step,
                    step.low_scale + factor_at,
                    step.low_zero + factor_at,
                    shape.unit // 4,
                    out + 4 * (t * width + lowest * PANEL),
                )
