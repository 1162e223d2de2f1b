"""Attention over a paged KV cache: every token reads exactly its own sequence's blocks.

The maths is softmax(q k^T * scale) v in float32. Decoding is a tile of one token; a prompt's tokens attend
some at a time, so that what is read of keys and values serves several. Keys of a block lie transposed,
[dim, BLOCK].
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from brainstacks.kernels.layout import BLOCK, TILE, floats, layer_at, step_at
from brainstacks.kernels.numbers import exponential, larger, widen
from brainstacks.kernels.team import as_pointer

TILE_TOKENS = 8
"""Most tokens of a tile."""

HEADS = 4
"""Query heads that are computed together; a group is filled up with zeros."""


@njit(fastmath={"contract"}, cache=True)
def _scores(query, q, keys, at, scores, to, width, dim):
    """scores[to + j * width + p] = query[q + j * dim:][:dim] . key p of a block, for j < HEADS.

    The block's keys lie transposed, [dim, BLOCK] from `at` on. HEADS sums at a time hide the latency of one
    multiplication behind the others, and share what is widened.
    """
    source, q0, step = np.uintp(at), np.uintp(q), np.uintp(dim)
    q1, q2, q3 = q0 + step, q0 + step + step, q0 + step + step + step
    t0, row = np.uintp(to), np.uintp(width)
    t1, t2, t3 = t0 + row, t0 + row + row, t0 + row + row + row
    for p in range(np.uintp(BLOCK)):
        scores[t0 + p] = np.float32(0.0)
        scores[t1 + p] = np.float32(0.0)
        scores[t2 + p] = np.float32(0.0)
        scores[t3 + p] = np.float32(0.0)
    for i in range(step):
        a0, a1, a2, a3 = query[q0 + i], query[q1 + i], query[q2 + i], query[q3 + i]
        here = source + i * np.uintp(BLOCK)
        for p in range(np.uintp(BLOCK)):
            key = widen(keys[here + p])
            scores[t0 + p] += a0 * key
            scores[t1 + p] += a1 * key
            scores[t2 + p] += a2 * key
            scores[t3 + p] += a3 * key


@njit(fastmath=True, cache=True)
def _highest(scores, start, end):
    highest = scores[start]
    for p in range(start, end):
        highest = larger(highest, scores[p])
    return highest


@njit(fastmath={"contract", "reassoc", "nsz"}, cache=True)
def _softmax(scores, first, length, scale):
    """scores[first:length] <- their softmax after `scale`."""
    start, end = np.uintp(first), np.uintp(length)
    highest = _highest(scores, start, end)
    mass = np.float32(0.0)
    nothing = np.float32(0.0)  # unless a score is no finite number, which must show in the output
    for p in range(start, end):
        nothing += np.float32(0.0) * scores[p]
        scores[p] = exponential(scale * (scores[p] - highest))
        mass += scores[p]
    factor = np.float32(1.0) / (mass + nothing)
    for p in range(start, end):
        scores[p] *= factor


@njit(fastmath={"contract"}, cache=True)
def _add_values(weights, start, count, values, at, out, to, dim):
    """out[to:to+dim] += sum over p < count of weights[start + p] * value p, whose rows begin at `at`."""
    step, target, first = np.uintp(dim), np.uintp(to), np.uintp(start)
    p = 0
    while p + 4 <= count:
        w0, w1 = weights[first + np.uintp(p)], weights[first + np.uintp(p + 1)]
        w2, w3 = weights[first + np.uintp(p + 2)], weights[first + np.uintp(p + 3)]
        r0 = np.uintp(at + p * dim)
        r1, r2 = r0 + step, r0 + step + step
        r3 = r2 + step
        for i in range(step):
            value = out[target + i]
            value += w0 * widen(values[r0 + i])
            value += w1 * widen(values[r1 + i])
            value += w2 * widen(values[r2 + i])
            value += w3 * widen(values[r3 + i])
            out[target + i] = value
        p += 4
    while p < count:
        w0 = weights[first + np.uintp(p)]
        r0 = np.uintp(at + p * dim)
        for i in range(step):
            out[target + i] += w0 * widen(values[r0 + i])
        p += 1


@njit(cache=True)
def attend_work(context, index, piece, dtype):
    """The query heads of one KV head for one tile of tokens: q of y -> x."""
    step = step_at(context)
    layer = layer_at(step, index // 4)
    tile = carray(as_pointer(step.tiles), (step.tile_count,), TILE)[piece // step.kv_heads]
    kv_head = piece % step.kv_heads
    dim, share, count = step.dim, step.heads // step.kv_heads, tile.count
    table = carray(as_pointer(step.blocks), ((tile.sequence + 1) * step.block_width,), np.int32)
    table = table[tile.sequence * step.block_width :]
    y, x = floats(step.y, step.tokens, step.y_width), floats(step.x, step.tokens, step.x_width)
    block_size = step.kv_heads * BLOCK * dim

    end = tile.position + count  # the last token's own position is end - 1
    first_block = 0
    if layer.window:
        first_block = max(0, tile.position - layer.window + 1) // BLOCK
    last_block = (end - 1) // BLOCK
    span = (last_block - first_block + 1) * BLOCK
    queries = count * share
    padded = (queries + HEADS - 1) // HEADS * HEADS
    query = np.zeros(padded * dim, np.float32)
    for i in range(count):
        for g in range(share):
            column = (kv_head * share + g) * dim
            query[(i * share + g) * dim : (i * share + g + 1) * dim] = y[
                tile.first + i, column : column + dim
            ]

    scores = np.empty((padded, span), np.float32)
    total = np.zeros(queries * dim, np.float32)
    reach = (np.int64(table.max()) + 1) * block_size
    keys = carray(as_pointer(layer.keys), (reach,), dtype)
    values = carray(as_pointer(layer.values), (reach,), dtype)
    for block in range(first_block, last_block + 1):
        at = np.int64(table[block]) * block_size + kv_head * BLOCK * dim
        for q in range(0, padded, HEADS):
            to = q * span + (block - first_block) * BLOCK
            _scores(query, q * dim, keys, at, scores.reshape(-1), to, span, dim)
    offset = first_block * BLOCK
    for i in range(count):
        length = tile.position + i + 1
        start = max(0, length - layer.window) if layer.window else 0
        for g in range(share):
            row = scores[i * share + g]
            row[: start - offset] = np.float32(0.0)
            _softmax(row, start - offset, length - offset, np.float32(layer.scale))
            row[length - offset :] = np.float32(0.0)
    for block in range(first_block, last_block + 1):
        at = np.int64(table[block]) * block_size + kv_head * BLOCK * dim
        seen = min(end, (block + 1) * BLOCK) - block * BLOCK  # what lies beyond was never written
        for q in range(queries):
            _add_values(scores[q], (block - first_block) * BLOCK, seen, values, at, total, q * dim, dim)
    for i in range(count):
        for g in range(share):
            column = (kv_head * share + g) * dim
            x[tile.first + i, column : column + dim] = total[
                (i * share + g) * dim : (i * share + g + 1) * dim
            ]
