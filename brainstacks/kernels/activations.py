"""What happens to tokens one by one between products: norms, int8, rotary embedding, the MLP's activation.

Everything is float32, whatever the base's dtype is: the residual stream is not rounded at each operation.
"""

from __future__ import annotations

import numpy as np
from numba import carray, cfunc

from brainstacks.kernels import internal, summing
from brainstacks.kernels.atomics import as_pointer
from brainstacks.kernels.layout import BLOCK, floats, group_at, integers, layer_at, linear_at, step_at
from brainstacks.kernels.numbers import exponential, fill, itemsize, larger, narrow, nearest
from brainstacks.kernels.team import PIECE
from brainstacks.kernels.tiles import PANEL
from brainstacks.kernels.vectors import ZERO_POINT

TOKENS_OF_PIECE = 4
"""Tokens that one piece of these phases takes."""


@internal
def token_pieces(count):
    return (count + TOKENS_OF_PIECE - 1) // TOKENS_OF_PIECE


@summing
def _rms(x, weight, out, n, eps):
    """out[:n] = x / sqrt(mean(x^2) + eps) * weight."""
    total = np.float32(0.0)
    for i in range(np.uintp(n)):
        total += x[i] * x[i]
    factor = np.float32(1.0 / np.sqrt(np.float64(total) / n + eps))
    for i in range(np.uintp(n)):
        out[i] = x[i] * factor * weight[i]


@summing
def _largest(x, start, end):
    largest = np.float32(0.0)
    for i in range(np.uintp(start), np.uintp(end)):
        largest = larger(largest, abs(x[i]))
    return largest


@summing
def _round(x, q, start, end, inverse):
    """q = round(x * inverse) as int8; their sum."""
    total = np.int32(0)
    for i in range(np.uintp(start), np.uintp(end)):
        value = nearest(x[i] * inverse)
        q[i] = np.int8(value)
        total += value
    return total


@summing
def _sum(x, start, end):
    total = np.float32(0.0)
    for i in range(np.uintp(start), np.uintp(end)):
        total += x[i]
    return total


@internal
def round_block(x, q, start, end):
    """x[start:end] = scale * q with q int8, |q| <= 127; the scale, and -ZERO_POINT * the sum of q.

    A number that is not finite makes the scale NaN.
    """
    nothing = np.float32(0.0) * _sum(x, start, end)
    largest = _largest(x, start, end)
    if largest == 0.0 or nothing != 0.0:
        fill(q, start, end, np.int8(0))
        return nothing, 0
    total = _round(x, q, start, end, np.float32(127.0) / largest)
    return largest / np.float32(127.0), -ZERO_POINT * total


@internal
def quantise(step, group, t, x, n):
    """Write x, row t of a group's input with n real numbers, as its products read it.

    In blocks of the group's own size: int8, see `round_block`; and `mass`, the sum of a block's x.
    """
    blocks = group.d_in // group.block
    fill(x, n, group.d_in, np.float32(0.0))  # weights are filled up with zeros, but 0 * NaN is NaN
    if group.fast:
        q = carray(as_pointer(step.q), (step.tokens, step.x_width), np.int8)[t]
        scale = floats(step.scale, step.tokens, step.block_count)[t]
        zero = carray(as_pointer(step.zero), (step.tokens, step.block_count), np.int32)[t]
        for b in range(blocks):
            scale[b], zero[b] = round_block(x, q, b * group.block, (b + 1) * group.block)
    if group.exact:
        mass = floats(step.mass, step.tokens, step.block_count)[t]
        for b in range(blocks):
            mass[b] = _sum(x, b * group.block, (b + 1) * group.block)


@internal
def _tokens(step, piece):
    return range(piece * TOKENS_OF_PIECE, min(step.tokens, (piece + 1) * TOKENS_OF_PIECE))


@cfunc(PIECE, cache=True)
def norm(context, index, piece):
    """h -> x of group `index` (0 or 2 of its layer), normalised."""
    step = step_at(context)
    group, layer = group_at(step, index), layer_at(step, index // 4)
    h, x = floats(step.h, step.tokens, step.width), floats(step.x, step.tokens, step.x_width)
    weight = floats(layer.norms[index % 4], 1, step.hidden)[0]
    for t in _tokens(step, piece):
        _rms(h[t], weight, x[t], step.hidden, step.eps)
        quantise(step, group, t, x[t], step.hidden)


@cfunc(PIECE, cache=True)
def joined(context, index, piece):
    """What attention left in x -> as group `index` (1 of its layer) reads it."""
    step = step_at(context)
    group = group_at(step, index)
    x = floats(step.x, step.tokens, step.x_width)
    for t in _tokens(step, piece):
        quantise(step, group, t, x[t], step.heads * step.dim)


# numpy's division, which raises nothing: a check would stop vectorisation.
@summing(error_model="numpy")
def _silu(y, other, x, n):
    for i in range(np.uintp(n)):
        gate = y[i]
        small = exponential(-abs(gate))  # which overflows nowhere
        share = np.float32(1.0) / (np.float32(1.0) + small)
        share = share if gate >= 0.0 else small * share
        x[i] = gate * share * y[other + i]


@summing(error_model="numpy")
def _gelu(y, other, x, n):
    """gelu in its tanh form: g * sigmoid(2 u), u = sqrt(2 / pi) (g + 0.044715 g^3)."""
    for i in range(np.uintp(n)):
        gate = y[i]
        u = np.float32(1.5957691216) * (gate + np.float32(0.044715) * gate * gate * gate)
        small = exponential(-abs(u))
        share = np.float32(1.0) / (np.float32(1.0) + small)
        share = share if u >= 0.0 else small * share
        x[i] = gate * share * y[other + i]


@cfunc(PIECE, cache=True)
def activate(context, index, piece):
    """y of gate and up -> x of group `index` (3 of its layer): act(gate) * up."""
    step = step_at(context)
    group = group_at(step, index)
    other = linear_at(step, group_at(step, index - 1).first + 1).column
    d_ff = linear_at(step, group_at(step, index - 1).first).d_out
    y, x = floats(step.y, step.tokens, step.y_width), floats(step.x, step.tokens, step.x_width)
    for t in _tokens(step, piece):
        if step.gelu:
            _gelu(y[t], np.uintp(other), x[t], d_ff)
        else:
            _silu(y[t], np.uintp(other), x[t], d_ff)
        quantise(step, group, t, x[t], d_ff)


@cfunc(PIECE, cache=True)
def after(context, index, piece):
    """h += norm(y) after group `index` (1 or 3 of its layer), where a layer has such norms."""
    step = step_at(context)
    layer = layer_at(step, index // 4)
    weight = floats(layer.norms[index % 4], 1, step.hidden)[0]
    h, y = floats(step.h, step.tokens, step.width), floats(step.y, step.tokens, step.y_width)
    for t in _tokens(step, piece):
        _rms(y[t], weight, y[t], step.hidden, step.eps)
        for i in range(step.hidden):
            h[t, i] += y[t, i]


@cfunc(PIECE, cache=True)
def final(context, index, piece):
    """h of the wanted tokens -> x of the head, group `index`; their rows are 0, 1, ... from here on."""
    step = step_at(context)
    group = group_at(step, index)
    wanted = integers(step.wanted, step.wanted_count)
    h, x = floats(step.h, step.tokens, step.width), floats(step.x, step.tokens, step.x_width)
    weight = floats(step.final_norm, 1, step.hidden)[0]
    for row in range(piece * TOKENS_OF_PIECE, min(step.wanted_count, (piece + 1) * TOKENS_OF_PIECE)):
        _rms(h[wanted[row]], weight, x[row], step.hidden, step.eps)
        quantise(step, group, row, x[row], step.hidden)


@cfunc(PIECE, cache=True)
def last_hidden(context, index, piece):
    """The last hidden state of every token, for the router."""
    step = step_at(context)
    h, last = floats(step.h, step.tokens, step.width), floats(step.last, step.tokens, step.width)
    weight = floats(step.final_norm, 1, step.hidden)[0]
    for t in _tokens(step, piece):
        _rms(h[t], weight, last[t], step.hidden, step.eps)


@internal(fastmath={"contract"})
def _turn(head, cos, sin, half):
    """Rotary position embedding in place: (a, b) -> (a cos - b sin, b cos + a sin), halves apart."""
    for i in range(half):
        a, b = head[i], head[half + i]
        head[i] = a * cos[i] - b * sin[i]
        head[half + i] = b * cos[half + i] + a * sin[half + i]


@internal
def _store(step, layer, slot, head, key, value, ends, dtype):
    """One head's key and value [dim] of one token; see `engine.kv_cache.PagedCache`."""
    size = BLOCK * step.depth  # of a head's keys or values in a block
    at = itemsize(dtype) * ((slot // BLOCK) * step.kv_heads + head) * size
    keys = carray(as_pointer(layer.keys + at), (size,), dtype)
    values = carray(as_pointer(layer.values + at), (size,), dtype)
    place = slot % BLOCK
    nothing = narrow(np.float32(0.0), keys[0])
    for i in range(step.depth):
        keys[i * BLOCK + place] = narrow(key[i], keys[0]) if i < step.dim else nothing
    for vector in range(0, step.depth, PANEL):
        row = (vector // PANEL * BLOCK + place) * PANEL
        for i in range(PANEL):
            known = vector + i < step.dim
            values[row + i] = narrow(value[vector + i], keys[0]) if known else nothing
        if ends:
            fill(values, row + PANEL, (vector // PANEL + 1) * BLOCK * PANEL, nothing)


@internal
def rotate_work(context, index, piece, dtype):
    """q, k, v in y: norms and rotary embedding of q and k in place; keys and values to their blocks."""
    step = step_at(context)
    layer = layer_at(step, index // 4)
    dim, first = step.dim, group_at(step, index).first
    y = floats(step.y, step.tokens, step.y_width)
    cos = floats(step.cos + 4 * layer.angles * step.reach * dim, step.reach, dim)
    sin = floats(step.sin + 4 * layer.angles * step.reach * dim, step.reach, dim)
    slots, positions = integers(step.kv_slots, step.tokens), integers(step.positions, step.tokens)
    key_column, value_column = linear_at(step, first + 1).column, linear_at(step, first + 2).column
    for t in _tokens(step, piece):
        for head in range(step.heads + step.kv_heads):
            is_key = head >= step.heads
            column = head * dim if not is_key else key_column + (head - step.heads) * dim
            vector = y[t, column : column + dim]
            weight = layer.k_norm if is_key else layer.q_norm
            if weight:
                _rms(vector, floats(weight, 1, dim)[0], vector, dim, step.eps)
            _turn(vector, cos[positions[t]], sin[positions[t]], dim // 2)
        # The last token of its block in this step leaves no value behind it that was never written.
        ends = t + 1 == step.tokens or slots[t + 1] != slots[t] + 1
        for head in range(step.kv_heads):
            key, value = y[t, key_column + head * dim :], y[t, value_column + head * dim :]
            _store(step, layer, slots[t], head, key, value, ends, dtype)
