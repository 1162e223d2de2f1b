"""Deltas of a step, compiled: per token only the stacks that it uses, and of each the experts that its gate
keeps.

The maths is that of `layers.delta` (`gate_weights`, `gated_hidden`), in two phases per group of projections
that share an input:

    down:  l = x G^T;  g = softmax(top-K of l);  h = w * s * g_e * (A_e x)   for the K chosen experts e
    up:    out += h B_all

Both read each row of A, G and B at most once per piece, whatever the number of tokens, and compute in
float32. A token's own sums are added in an order that does not depend on the other tokens.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from brainstacks.kernels.layout import FACTOR, ROUND, floats, group_at, linear_at, step_at
from brainstacks.kernels.products import target
from brainstacks.kernels.rows import add_rows, project, widen_row
from brainstacks.kernels.team import as_pointer

COLUMNS = 256
"""Outputs that one piece of `up` computes."""

SPAN = 64
"""Tokens that one piece takes."""


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
def _down_item(A, G, x, weights, hidden, gates, top_k):
    """One projection of one round: its gate for every token that uses the round, then the chosen experts.

    A [N*r, d_in], G [N, d_in], x [T, >= d_in], weights [T], hidden [T, >= N*r], gates [T, N], zeros.
    """
    T, experts = gates.shape
    rank = A.shape[0] // experts
    using = np.empty(T, np.int64)
    count = 0
    for t in range(T):
        if weights[t] != 0.0:
            using[count] = t
            count += 1
    if count == 0:
        return
    unit = _unit(experts, rank)
    values = np.empty((count, max(experts, unit)), np.float32)
    project(G, x, using, count, values)
    for i in range(count):
        _choose(values[i, :experts], gates[using[i]], top_k)
    chosen = np.empty(count, np.int64)
    for first in range(0, experts * rank, unit):
        number = 0
        for i in range(count):
            if _uses(gates[using[i]], first // rank, unit // rank):
                chosen[number] = using[i]
                number += 1
        if number == 0:
            continue
        project(A[first : first + unit], x, chosen, number, values)
        for i in range(number):
            t = chosen[i]
            for r in range(unit):
                e = (first + r) // rank
                hidden[t, first + r] = values[i, r] * gates[t, e] * weights[t]


@njit(cache=True)
def _up_item(B, at, d_out, hidden, gates, unit, wide, out, to, out_width, n):
    """out [T, n] += hidden B of one round, for the n columns of one projection that start at `at`.

    B [N*r * d_out], flat; hidden [T, N*r], 0 where an expert was not chosen; gates [T, N]; wide
    [unit * COLUMNS] float32, flat; out flat, its first row at `to`; unit: rows that are chosen together.
    """
    T, experts = gates.shape
    rank = hidden.shape[1] // experts
    for first in range(0, experts * rank, unit):
        using, last = 0, 0
        for t in range(T):
            if _uses(gates[t], first // rank, unit // rank):
                using += 1
                last = t
        if using == 1:
            h = hidden[last, first : first + unit]
            add_rows(B, first * d_out + at, d_out, h, unit, out, to + last * out_width, n)
        elif using > 1:
            for i in range(unit):
                widen_row(B, (first + i) * d_out + at, wide, i * COLUMNS, n)
            for t in range(T):
                if _uses(gates[t], first // rank, unit // rank):
                    h = hidden[t, first : first + unit]
                    add_rows(wide, 0, COLUMNS, h, unit, out, to + t * out_width, n)


@njit(cache=True, inline="always")
def _uses(gates, first, count):
    for e in range(first, first + count):  # noqa: SIM110 -- numba knows no any()
        if gates[e] != 0.0:
            return True
    return False


@njit(cache=True)
def _unit(experts, rank):
    """Rows that are computed together: an expert's, or all of a round's where an expert has only a few."""
    return rank if rank >= 8 else experts * rank


@njit(cache=True)
def _spans(tokens):
    return (tokens + SPAN - 1) // SPAN


@njit(cache=True)
def down_pieces(step, group):
    """A piece is a span of tokens, a round and a projection."""
    return _spans(step.tokens) * step.rounds * group.linears


@njit(cache=True)
def up_pieces(step, group):
    """A piece is a span of tokens and a block of columns, over all projections of the group."""
    return _spans(step.tokens) * ((group.columns + COLUMNS - 1) // COLUMNS + group.linears - 1)


@njit(cache=True)
def _shape(step, g):
    return carray(as_pointer(step.round_table), (step.rounds,), ROUND)[g]


@njit(cache=True)
def _factor(step, layer, projection, g):
    """Where round g has its factors for one projection of a layer."""
    index = (layer * 7 + projection) * step.rounds + g
    return carray(as_pointer(step.factor_table), (index + 1,), FACTOR)[index]


@njit(cache=True)
def _scratch(step, projection, g):
    """hidden [T, columns] and gates [T, experts] of a round for the projection-th of a group."""
    at = projection * step.rounds + g
    hidden = floats(step.low + 4 * at * step.tokens * step.columns, step.tokens, step.columns)
    gates = floats(step.gates + 4 * at * step.tokens * step.experts, step.tokens, step.experts)
    return hidden, gates


@njit(cache=True)
def down_work(context, index, piece, dtype):
    step = step_at(context)
    group = group_at(step, index)
    projection, rest = piece % group.linears, piece // group.linears
    g, first = rest % step.rounds, rest // step.rounds * SPAN
    last = min(step.tokens, first + SPAN)
    linear = linear_at(step, group.first + projection)
    shape, factor = _shape(step, g), _factor(step, index // 4, linear.projection, g)
    hidden, gates = _scratch(step, projection, g)
    gates = gates[first:last]
    gates[:] = np.float32(0.0)
    if not factor.A:
        return
    d_in = linear.d_in
    _down_item(
        carray(as_pointer(factor.A), (shape.experts * shape.rank, d_in), dtype),
        carray(as_pointer(factor.gate), (shape.experts, d_in), dtype),
        floats(step.x, step.tokens, step.x_width)[first:last],
        floats(step.weights, step.rounds, step.tokens)[g, first:last],
        hidden[first:last],
        gates[:, : shape.experts],
        shape.top_k,
    )


@njit(cache=True)
def up_work(context, index, piece, dtype):
    step = step_at(context)
    group = group_at(step, index)
    spans = _spans(step.tokens)
    first = piece % spans * SPAN
    last = min(step.tokens, first + SPAN)
    block, projection = piece // spans, 0
    while projection < group.linears:
        linear = linear_at(step, group.first + projection)
        blocks = (linear.d_out + COLUMNS - 1) // COLUMNS
        if block < blocks:
            break
        block -= blocks
        projection += 1
    if projection == group.linears:
        return
    linear = linear_at(step, group.first + projection)
    at = block * COLUMNS
    n = min(COLUMNS, linear.d_out - at)
    address, width = target(step, index)
    out = carray(as_pointer(address), (step.tokens * width,), np.float32)
    for g in range(step.rounds):
        shape, factor = _shape(step, g), _factor(step, index // 4, linear.projection, g)
        if not factor.B:
            continue
        hidden, gates = _scratch(step, projection, g)
        columns = shape.experts * shape.rank
        unit = _unit(shape.experts, shape.rank)
        wide = np.empty(unit * COLUMNS, np.float32)
        _up_item(
            carray(as_pointer(factor.B), (columns * linear.d_out,), dtype),
            at,
            linear.d_out,
            hidden[first:last, :columns],
            gates[first:last, : shape.experts],
            unit,
            wide,
            out,
            first * width + linear.column + at,
            width,
            n,
        )
