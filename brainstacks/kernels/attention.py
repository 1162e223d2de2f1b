"""Attention over a paged KV cache: every token reads exactly its own sequence's blocks.

The maths is softmax(q k^T * scale) v in float32. Decoding is a tile of one token; a prompt's tokens attend
some at a time, so that what is read of keys and values serves several. Keys of a block lie transposed,
[dim, BLOCK].
"""

from __future__ import annotations

import numpy as np
from numba import carray

from brainstacks.kernels import internal, summing
from brainstacks.kernels.atomics import as_pointer, call
from brainstacks.kernels.layout import BLOCK, TILE, floats, layer_at, step_at
from brainstacks.kernels.numbers import ZERO, copy, exponential, fill, itemsize, larger
from brainstacks.kernels.tiles import CHUNK, PANEL

TILE_TOKENS = 8
"""Most tokens of a tile."""


@internal(fastmath=True, forceinline=True)
def _highest(scores, start, end):
    highest = scores[start]
    for p in range(start, end):
        highest = larger(highest, scores[p])
    return highest


@summing
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


@internal
def _multiply(step, weights, chunks, x, x_step, start, out, out_step, count):
    """out [count, 16] = start (0: what is in out) + x times chunks of keys or values as they are stored."""
    call(
        step.plain,
        weights,
        step.ones,
        0,
        0,
        x,
        x_step,
        0,
        0,
        0,
        start,
        out,
        out_step,
        1,
        chunks,
        step.order,
        count,
        0,
        0,
    )


@internal
def attend_work(context, index, piece, dtype):
    """The query heads of one KV head for one tile of tokens: q of y -> x."""
    step = step_at(context)
    layer = layer_at(step, index // 4)
    tile = carray(as_pointer(step.tiles), (step.tile_count,), TILE)[piece // step.kv_heads]
    kv_head = piece % step.kv_heads
    dim, depth, share, count = step.dim, step.depth, step.heads // step.kv_heads, tile.count
    width = step.block_width
    table = carray(as_pointer(step.blocks + 4 * tile.sequence * width), (width,), np.int32)
    y, x = floats(step.y, step.tokens, step.y_width), floats(step.x, step.tokens, step.x_width)

    end = tile.position + count  # the last token's own position is end - 1
    first_block = max(0, tile.position - layer.window + 1) // BLOCK if layer.window else 0
    last_block = (end - 1) // BLOCK
    span = (last_block - first_block + 1) * BLOCK
    queries = count * share
    query = np.zeros((queries, depth), np.float32)
    for i in range(count):
        for g in range(share):
            column = (kv_head * share + g) * dim
            copy(y[tile.first + i], column, query[i * share + g], ZERO, dim)

    size = itemsize(dtype) * BLOCK * depth  # bytes of a head's keys or values in a block
    scores = np.empty((queries, span), np.float32)
    for block in range(first_block, last_block + 1):
        keys = layer.keys + (np.int64(table[block]) * step.kv_heads + kv_head) * size
        to = scores.ctypes.data + 4 * (block - first_block) * BLOCK
        _multiply(
            step, keys, depth // CHUNK, query.ctypes.data, 4 * depth, step.nothing, to, 4 * span, queries
        )
    offset = first_block * BLOCK
    for i in range(count):
        length = tile.position + i + 1
        start = max(0, length - layer.window) if layer.window else 0
        for g in range(share):
            row = scores[i * share + g]
            fill(row, ZERO, start - offset, np.float32(0.0))
            _softmax(row, start - offset, length - offset, np.float32(layer.scale))
            fill(row, length - offset, span, np.float32(0.0))
    total = np.zeros((queries, depth), np.float32)
    for block in range(first_block, last_block + 1):
        values = layer.values + (np.int64(table[block]) * step.kv_heads + kv_head) * size
        weights = scores.ctypes.data + 4 * (block - first_block) * BLOCK
        for vector in range(depth // PANEL):
            at = values + itemsize(dtype) * vector * BLOCK * PANEL
            to = total.ctypes.data + 4 * vector * PANEL
            _multiply(step, at, BLOCK // CHUNK, weights, 4 * span, 0, to, 4 * depth, queries)
    for i in range(count):
        for g in range(share):
            column = (kv_head * share + g) * dim
            copy(total[i * share + g], ZERO, x[tile.first + i], column, dim)
