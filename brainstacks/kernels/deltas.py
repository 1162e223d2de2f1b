"""Deltas of a few tokens on the CPU, compiled: the stacks that a token uses, and of each the chosen experts.

The maths is that of `layers.delta` (`gate_weights`, `gated_hidden`), in two calls per group of projections
that share an input:

    down:  l = x G^T;  g = softmax(top-K of l);  h = w * s * g_e * (A_e x)   for the K chosen experts e
    up:    out += h B_all

Both read each row of A, G and B at most once per call, whatever the number of tokens, and compute in
float32; `out` is rounded once. A token's own sums are added in an order that does not depend on the other
tokens as long as `invariant` is set; without it, a token that is alone takes a faster loop that may round
differently.

PyTorch's own operators take longer to dispatch than one token's deltas take to compute, and some ten of them
make one delta.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import carray, cfunc, njit, types

from brainstacks.kernels.numbers import widen
from brainstacks.kernels.products import add_row, add_rows, project, widen_row
from brainstacks.kernels.team import as_pointer, claim, parallel_address, run_parallel

MAX_TOKENS = 64
"""Most tokens for which the kernels are used; with more, PyTorch's GEMMs win."""

COLUMNS = 256
"""Outputs that one piece of work of `up` computes; its accumulators stay in the first-level cache."""

# One call's argument: a row of int64, of which most is the same for every step. Addresses are of
#   down_pointers [rounds], each to [P * N * (r+1), d_in];  up_pointers [P, rounds], each to [N * r, d_out];
#   weights [rounds, T] float32, and of scratch in float32:
#   x32 [T, d_in];  hidden [P, rounds, T, N * r];  gates [P, rounds, T, N].
FIELDS = (
    "counter", "items", "invariant", "tokens", "rounds", "projections", "experts", "rank", "top_k", "d_in",
    "down_pointers", "up_pointers", "weights", "x32", "hidden", "gates", "projection", "d_out", "out",
)  # fmt: skip
(
    _COUNTER, _ITEMS, _INVARIANT, _T, _ROUNDS, _P, _N, _R, _K, _D_IN,
    _DOWN, _UP, _WEIGHTS, _X32, _HIDDEN, _GATES, _PROJECTION, _D_OUT, _OUT,
) = range(len(FIELDS))  # fmt: skip


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
def _down_item(A, G, x, weights, hidden, gates, top_k, invariant):
    """One projection of one round: its gate for every token that uses the round, then the chosen experts.

    A [N*r, d_in], G [N, d_in], x [T, d_in], weights [T], hidden [T, N*r], gates [T, N].
    """
    T, experts = gates.shape
    rank = A.shape[0] // experts
    using = np.empty(T, np.int64)
    count = 0
    for t in range(T):
        gates[t, :] = np.float32(0.0)
        if weights[t] != 0.0:
            using[count] = t
            count += 1
    if count == 0:
        return
    unit = _unit(experts, rank)
    values = np.empty((count, max(experts, unit)), np.float32)
    project(G, x, using, count, values, invariant)
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
        project(A[first : first + unit], x, chosen, number, values, invariant)
        for i in range(number):
            t = chosen[i]
            for r in range(unit):
                e = (first + r) // rank
                hidden[t, first + r] = values[i, r] * gates[t, e] * weights[t]


@njit(cache=True)
def _up_item(B, at, d_out, hidden, gates, unit, wide, total, n):
    """total [T, n] += hidden B of one round, for the n columns of one projection that start at `at`.

    B [N*r * d_out], flat; hidden [T, N*r], 0 where an expert was not chosen; gates [T, N]; wide
    [unit * COLUMNS] and total [T * COLUMNS] float32, flat; unit: rows that are chosen together.
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
            add_rows(B, first * d_out + at, d_out, h, unit, total, last * COLUMNS, n)
        elif using > 1:
            for i in range(unit):
                widen_row(B, (first + i) * d_out + at, wide, i * COLUMNS, n)
            for t in range(T):
                if _uses(gates[t], first // rank, unit // rank):
                    h = hidden[t, first : first + unit]
                    add_rows(wide, 0, COLUMNS, h, unit, total, t * COLUMNS, n)


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
def _down_work(call, dtype):
    """Claim (round, projection) pairs until none is left."""
    T, rounds, projections, experts, rank = call[_T], call[_ROUNDS], call[_P], call[_N], call[_R]
    d_in = call[_D_IN]
    x = carray(as_pointer(call[_X32]), (T, d_in), np.float32)
    pointers = carray(as_pointer(call[_DOWN]), (rounds,), np.int64)
    weights = carray(as_pointer(call[_WEIGHTS]), (rounds, T), np.float32)
    hidden = carray(as_pointer(call[_HIDDEN]), (projections, rounds, T, experts * rank), np.float32)
    gates = carray(as_pointer(call[_GATES]), (projections, rounds, T, experts), np.float32)
    rows = projections * experts * (rank + 1)
    invariant = call[_INVARIANT] != 0
    while True:
        item = claim(call.ctypes.data)  # the counter is the first field
        if item >= call[_ITEMS]:
            return
        g, p = item // projections, item % projections
        packed = carray(as_pointer(pointers[g]), (rows, d_in), dtype)
        first, gate = p * experts * rank, projections * experts * rank + p * experts
        _down_item(
            packed[first : first + experts * rank],
            packed[gate : gate + experts],
            x,
            weights[g],
            hidden[p, g],
            gates[p, g],
            call[_K],
            invariant,
        )


@njit(cache=True)
def _up_work(call, dtype):
    """Claim blocks of a projection's columns until none is left."""
    T, rounds, projections, experts, rank = call[_T], call[_ROUNDS], call[_P], call[_N], call[_R]
    p, d_out = call[_PROJECTION], call[_D_OUT]
    pointers = carray(as_pointer(call[_UP]), (projections, rounds), np.int64)
    hidden = carray(as_pointer(call[_HIDDEN]), (projections, rounds, T, experts * rank), np.float32)
    gates = carray(as_pointer(call[_GATES]), (projections, rounds, T, experts), np.float32)
    out = carray(as_pointer(call[_OUT]), (T * d_out,), dtype)
    unit = _unit(experts, rank)
    total = np.empty(T * COLUMNS, np.float32)
    wide = np.empty(unit * COLUMNS, np.float32)
    while True:
        item = claim(call.ctypes.data)  # the counter is the first field
        if item >= call[_ITEMS]:
            return
        lo = item * COLUMNS
        n = min(COLUMNS, d_out - lo)
        total[:] = np.float32(0.0)
        for g in range(rounds):
            B = carray(as_pointer(pointers[p, g]), (experts * rank * d_out,), dtype)
            _up_item(B, lo, d_out, hidden[p, g], gates[p, g], unit, wide, total, n)
        for t in range(T):
            add_row(total, t * COLUMNS, out, t * d_out + lo, n)


_BODY = types.void(types.CPointer(types.int64))


@cfunc(_BODY, cache=True)
def _down_bfloat16(call):
    _down_work(carray(call, (len(FIELDS),)), np.uint16)


@cfunc(_BODY, cache=True)
def _down_float32(call):
    _down_work(carray(call, (len(FIELDS),)), np.float32)


@cfunc(_BODY, cache=True)
def _up_bfloat16(call):
    _up_work(carray(call, (len(FIELDS),)), np.uint16)


@cfunc(_BODY, cache=True)
def _up_float32(call):
    _up_work(carray(call, (len(FIELDS),)), np.float32)


@njit(cache=True)
def _prepare(call, x, dtype):
    """Widen the activations for `_down_work`."""
    size = call[_T] * call[_D_IN]
    values = carray(as_pointer(x), (size,), dtype)
    x32 = carray(as_pointer(call[_X32]), (size,), np.float32)
    for i in range(np.uintp(size)):
        x32[i] = widen(values[i])
    call[_COUNTER] = 0
    call[_ITEMS] = call[_ROUNDS] * call[_P]


@njit(cache=True)
def _launch_down_bfloat16(call, x, parallel, body, threads):
    _prepare(call, x, np.uint16)
    run_parallel(parallel, body, call.ctypes.data, threads)


@njit(cache=True)
def _launch_down_float32(call, x, parallel, body, threads):
    _prepare(call, x, np.float32)
    run_parallel(parallel, body, call.ctypes.data, threads)


@njit(cache=True)
def _launch_up(call, projection, out, d_out, parallel, body, threads):
    call[_PROJECTION], call[_OUT], call[_D_OUT] = projection, out, d_out
    call[_COUNTER] = 0
    call[_ITEMS] = (d_out + COLUMNS - 1) // COLUMNS
    run_parallel(parallel, body, call.ctypes.data, threads)


class Kernels:
    """The compiled pair for one dtype, with the number of threads that torch computes with."""

    def __init__(self, launch_down: Any, down: int, up: int) -> None:
        self._launch_down, self._down, self._up = launch_down, down, up
        self._parallel = parallel_address()

    @staticmethod
    @cache
    def of(float32: bool) -> Kernels:
        """For stacks and activations in float32, or else in bfloat16."""
        if float32:
            return Kernels(_launch_down_float32, _down_float32.address, _up_float32.address)
        return Kernels(_launch_down_bfloat16, _down_bfloat16.address, _up_bfloat16.address)

    def down(self, call: np.ndarray, x: int) -> None:
        """Gate and project; `x` is the address of [T, d_in]."""
        self._launch_down(call, x, self._parallel, self._down, torch.get_num_threads())

    def up(self, call: np.ndarray, projection: int, out: int, d_out: int) -> None:
        """Add projection's deltas to [T, d_out] at the address `out`, after `down` of the same call."""
        _launch_up(call, projection, out, d_out, self._parallel, self._up, torch.get_num_threads())
