"""Products of a few tokens with rows of weights: what the compiled deltas consist of.

Weights are bfloat16 (as uint16) or float32, everything else float32.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from brainstacks.kernels.numbers import widen


@njit(fastmath=True, cache=True)
def _dot4(row, x0, x1, x2, x3, d):
    """One row of weights against four tokens: it is read and widened once."""
    s0 = np.float32(0.0)
    s1 = np.float32(0.0)
    s2 = np.float32(0.0)
    s3 = np.float32(0.0)
    for i in range(d):
        w = widen(row[i])
        s0 += w * x0[i]
        s1 += w * x1[i]
        s2 += w * x2[i]
        s3 += w * x3[i]
    return s0, s1, s2, s3


@njit(fastmath=True, cache=True)
def _dot2x4(row, next_row, x0, x1, x2, x3, d):
    """Two rows of weights against four tokens: what is read is used twice and four times."""
    a0 = np.float32(0.0)
    a1 = np.float32(0.0)
    a2 = np.float32(0.0)
    a3 = np.float32(0.0)
    b0 = np.float32(0.0)
    b1 = np.float32(0.0)
    b2 = np.float32(0.0)
    b3 = np.float32(0.0)
    for i in range(d):
        a, b = widen(row[i]), widen(next_row[i])
        a0 += a * x0[i]
        a1 += a * x1[i]
        a2 += a * x2[i]
        a3 += a * x3[i]
        b0 += b * x0[i]
        b1 += b * x1[i]
        b2 += b * x2[i]
        b3 += b * x3[i]
    return (a0, a1, a2, a3), (b0, b1, b2, b3)


@njit(cache=True)
def project(rows, x, tokens, count, out):
    """out[i, r] = rows[r] . x[tokens[i]] for i < count; rows [R, d_in], x [T, >= d_in] float32."""
    d = rows.shape[1]
    for i in range(0, count, 4):
        # A block that is not full repeats its first token: one loop, one order of summation.
        t0 = tokens[i]
        t1 = tokens[i + 1] if i + 1 < count else t0
        t2 = tokens[i + 2] if i + 2 < count else t0
        t3 = tokens[i + 3] if i + 3 < count else t0
        x0, x1, x2, x3 = x[t0], x[t1], x[t2], x[t3]
        full = count - i if count - i < 4 else 4
        r = 0
        while r + 2 <= rows.shape[0]:
            sums, next_sums = _dot2x4(rows[r], rows[r + 1], x0, x1, x2, x3, d)
            for j in range(full):
                out[i + j, r] = sums[j]
                out[i + j, r + 1] = next_sums[j]
            r += 2
        if r < rows.shape[0]:
            sums = _dot4(rows[r], x0, x1, x2, x3, d)
            for j in range(full):
                out[i + j, r] = sums[j]


@njit(cache=True, fastmath={"contract"})
def add_rows(rows, at, stride, h, count, total, to, n):
    """total[to + c] += sum over i < count of h[i] * rows[at + i * stride + c], for c < n, in order of i.

    Flat arrays, unsigned indices (a signed one may count from the end, and its check stops vectorisation),
    and eight rows at a time: the accumulators are loaded and stored once for eight products.
    """
    step, base = np.uintp(stride), np.uintp(to)
    i = 0
    while i + 8 <= count:
        h0, h1, h2, h3 = h[i], h[i + 1], h[i + 2], h[i + 3]
        h4, h5, h6, h7 = h[i + 4], h[i + 5], h[i + 6], h[i + 7]
        r0 = np.uintp(at + i * stride)
        r1, r2, r3, r4 = r0 + step, r0 + step + step, r0 + np.uintp(3) * step, r0 + np.uintp(4) * step
        r5, r6, r7 = r4 + step, r4 + step + step, r4 + np.uintp(3) * step
        for c in range(np.uintp(n)):
            value = total[base + c]
            value += h0 * widen(rows[r0 + c])
            value += h1 * widen(rows[r1 + c])
            value += h2 * widen(rows[r2 + c])
            value += h3 * widen(rows[r3 + c])
            value += h4 * widen(rows[r4 + c])
            value += h5 * widen(rows[r5 + c])
            value += h6 * widen(rows[r6 + c])
            value += h7 * widen(rows[r7 + c])
            total[base + c] = value
        i += 8
    while i < count:
        h0 = h[i]
        r0 = np.uintp(at + i * stride)
        for c in range(np.uintp(n)):
            total[base + c] += h0 * widen(rows[r0 + c])
        i += 1


@njit(cache=True)
def widen_row(rows, at, wide, to, n):
    source, target = np.uintp(at), np.uintp(to)
    for c in range(np.uintp(n)):
        wide[target + c] = widen(rows[source + c])
