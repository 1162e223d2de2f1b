"""Attention of one new token per sequence over a paged KV cache, compiled, on the CPU.

Each row reads exactly its own tokens, block by block: no padding to the longest, no gathering of blocks.
The maths is softmax(q k^T * scale) v in float32, with the new key and value stored first.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numba import carray, cfunc, njit, types
from torch import Tensor

from brainstacks.kernels.numbers import exponential, narrow, widen
from brainstacks.kernels.team import as_pointer, claim, parallel_address, run_parallel

# One call's argument, int64 each. Strides are in elements; `scale` holds the bits of a float64.
FIELDS = (
    "counter", "rows", "heads", "kv_heads", "dim", "table_width", "window", "scale",
    "query", "query_head", "query_row", "key", "key_head", "key_row", "value", "value_head", "value_row",
    "keys", "values", "table", "lengths", "out",
)  # fmt: skip
(
    _COUNTER, _ROWS, _HEADS, _KV_HEADS, _DIM, _TABLE_WIDTH, _WINDOW, _SCALE,
    _QUERY, _QUERY_HEAD, _QUERY_ROW, _KEY, _KEY_HEAD, _KEY_ROW, _VALUE, _VALUE_HEAD, _VALUE_ROW,
    _KEYS, _VALUES, _TABLE, _LENGTHS, _OUT,
) = range(len(FIELDS))  # fmt: skip

BLOCK = 16
"""Tokens of one block. Its keys lie transposed, so that sixteen scores are one vector."""

HEADS = 4
"""Query heads that are computed together; a group is filled up with zeros."""

_FAR = 2**62
"""More elements than any tensor has: the length of an array over memory whose end the call does not know."""


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
        highest = max(highest, scores[p])
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
def _store(call, row, head, keys, values, last, dtype):
    """The row's new key and value, at its position `last`."""
    kv_heads, dim = call[_KV_HEADS], call[_DIM]
    table = carray(as_pointer(call[_TABLE]), (call[_ROWS], call[_TABLE_WIDTH]), np.int32)[row]
    block = (np.int64(table[last // BLOCK]) * kv_heads + head) * BLOCK * dim
    place = last % BLOCK
    key = carray(as_pointer(call[_KEY]), (_FAR,), dtype)
    value = carray(as_pointer(call[_VALUE]), (_FAR,), dtype)
    key_at = head * call[_KEY_HEAD] + row * call[_KEY_ROW]
    value_at = head * call[_VALUE_HEAD] + row * call[_VALUE_ROW]
    for i in range(dim):
        keys[block + i * BLOCK + place] = key[key_at + i]
        values[block + place * dim + i] = value[value_at + i]


@njit(cache=True)
def _item(call, row, head, scores, query, total, dtype):
    """The query heads of one KV head of one row."""
    kv_heads, dim = call[_KV_HEADS], call[_DIM]
    group = call[_HEADS] // kv_heads
    table = carray(as_pointer(call[_TABLE]), (call[_ROWS], call[_TABLE_WIDTH]), np.int32)[row]
    length = np.int64(carray(as_pointer(call[_LENGTHS]), (call[_ROWS],), np.int32)[row])
    keys = carray(as_pointer(call[_KEYS]), (_FAR,), dtype)
    values = carray(as_pointer(call[_VALUES]), (_FAR,), dtype)
    asked = carray(as_pointer(call[_QUERY]), (_FAR,), dtype)
    out = carray(as_pointer(call[_OUT]), (call[_ROWS], call[_HEADS] * dim), dtype)[row]
    scale = np.float32(call.view(np.float64)[_SCALE])

    _store(call, row, head, keys, values, length - 1, dtype)
    for g in range(group):
        at = (head * group + g) * call[_QUERY_HEAD] + row * call[_QUERY_ROW]
        for i in range(dim):
            query[g * dim + i] = widen(asked[at + i])
    first = 0 if call[_WINDOW] <= 0 else max(0, length - call[_WINDOW])
    blocks = range(first // BLOCK, (length - 1) // BLOCK + 1)
    for block in blocks:
        at = (np.int64(table[block]) * kv_heads + head) * BLOCK * dim
        for g in range(0, group, HEADS):
            to = g * scores.shape[1] + block * BLOCK
            _scores(query, g * dim, keys, at, scores.reshape(-1), to, scores.shape[1], dim)
    total[: group * dim] = np.float32(0.0)
    for g in range(group):
        _softmax(scores[g], first, length, scale)
    for block in blocks:
        start = first if first > block * BLOCK else block * BLOCK
        end = length if length < (block + 1) * BLOCK else (block + 1) * BLOCK
        count = end - start
        at = ((np.int64(table[block]) * kv_heads + head) * BLOCK + start % BLOCK) * dim
        for g in range(group):
            _add_values(scores[g], start, count, values, at, total, g * dim, dim)
    for i in range(group * dim):
        out[head * group * dim + i] = narrow(total[i], out[0])


@njit(cache=True)
def _work(call, dtype):
    """Claim (row, KV head) pairs until none is left."""
    kv_heads, dim = call[_KV_HEADS], call[_DIM]
    group = call[_HEADS] // kv_heads
    padded = (group + HEADS - 1) // HEADS * HEADS
    scores = np.empty((padded, call[_TABLE_WIDTH] * BLOCK), np.float32)
    query = np.zeros(padded * dim, np.float32)
    total = np.empty(group * dim, np.float32)
    while True:
        item = claim(call.ctypes.data)
        if item >= call[_ROWS] * kv_heads:
            return
        _item(call, item // kv_heads, item % kv_heads, scores, query, total, dtype)


_BODY = types.void(types.CPointer(types.int64))


@cfunc(_BODY, cache=True)
def _bfloat16(call):
    _work(carray(call, (len(FIELDS),)), np.uint16)


@cfunc(_BODY, cache=True)
def _float32(call):
    _work(carray(call, (len(FIELDS),)), np.float32)


@njit(cache=True)
def _launch(call, parallel, body, threads):
    run_parallel(parallel, body, call.ctypes.data, threads)


@cache
def _bodies() -> dict[torch.dtype, int]:
    return {torch.bfloat16: _bfloat16.address or 0, torch.float32: _float32.address or 0}


def supports(tensor: Tensor) -> bool:
    """Whether `paged_decode` computes on this tensor's device and dtype."""
    return tensor.device.type == "cpu" and tensor.dtype in _bodies()


def paged_decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """Store each row's new key and value, then attend over the row's tokens, the new one included.

    Args:
        query: [H, n, D]; key, value: [H_kv, n, D]; any strides, but D contiguous.
        keys, values: [blocks, H_kv, BLOCK, D]; values contiguous, of the keys the last two axes transposed in
            memory; written at each row's last position.
        table: [n, W] int32, the blocks of each row in order; lengths: [n] int32, tokens of each row >= 1,
            the new one included, at most W * BLOCK.
        window: tokens that a row looks back, itself included; None for all.

    Returns:
        [n, H, D], in the query's dtype.
    """
    heads, n, dim = query.shape
    if keys.shape[2] != BLOCK or not keys.transpose(2, 3).is_contiguous() or not values.is_contiguous():
        raise ValueError(f"keys and values are not laid out in blocks of {BLOCK}, the keys transposed")
    out = torch.empty(n, heads, dim, dtype=query.dtype)
    call = np.array(
        [
            0, n, heads, key.shape[0], dim, table.shape[1], window or 0, 0,
            query.data_ptr(), query.stride(0), query.stride(1),
            key.data_ptr(), key.stride(0), key.stride(1),
            value.data_ptr(), value.stride(0), value.stride(1),
            keys.data_ptr(), values.data_ptr(), table.data_ptr(), lengths.data_ptr(), out.data_ptr(),
        ],
        np.int64,
    )  # fmt: skip
    call.view(np.float64)[_SCALE] = scale
    _launch(call, parallel_address(), _bodies()[query.dtype], torch.get_num_threads())
    return out
