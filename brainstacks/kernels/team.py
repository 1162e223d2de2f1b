"""Compiled work on several threads: a run of phases, each of many pieces.

The thread that asks for a run drives it: it opens one phase after the other and computes pieces itself. The
others help where there are pieces left, and the driver waits only for pieces that somebody has taken. So a
helper that the system does not run, since other processes want the cores too, delays nothing; who finds
nothing to do yields, and soon sleeps. An OpenMP region would wait for each of its threads, twice, and let
them spin meanwhile.

A team's memory is an array of int64, its fields eight apart, so that threads that write to one do not slow
down those who read another.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numba import carray, njit, types

from brainstacks.kernels import internal
from brainstacks.kernels.atomics import add, as_pointer, call, give_way, load, now, pause, store, swap

APART = 8
"""int64s from one of these fields to the next: a cache line."""

TICKET, DONE, BODY, CONTEXT, ARGUMENT, THREADS, YIELD, ASLEEP, TRACE = (APART * i for i in range(9))
"""The phase's number and its pieces left; pieces that helpers have done; what computes a piece, and of what;
threads of the team; the address of `sched_yield`; how many helpers sleep, or are about to; the address of a
trace, 0 for none."""

_FIELDS = 9 * APART

TRACED = 3
"""int64s of a trace for each phase: its body, its argument, and the nanoseconds it took. Three go before all
of them: the address of `clock_gettime`, and how many phases there are and how many fit."""

_PIECES = 24  # bits of the ticket that count pieces; the others number the phases, and never come again

_SPINS = 1000  # looks at the ticket, some tens of microseconds, before a thread gives its core away
_PATIENCE = 4000  # looks before it sleeps: a few milliseconds, for the next step is near

PIECE = types.void(types.int64, types.int64, types.int64)
"""What computes a piece: f(context, argument, piece)."""

DRIVER = types.void(types.int64, types.int64)
"""What opens the phases of a run: f(address of the team's memory, context)."""


@cache
def _address_of(name: str) -> int:
    """Of a function of the C library, 0 where there is none."""
    found = getattr(ctypes.CDLL(None), name, None)
    return ctypes.cast(found, ctypes.c_void_p).value or 0 if found is not None else 0


@internal
def _wait(memory, turns):
    """One turn of waiting; after some, let others have the core."""
    pause()
    if turns > _SPINS and memory[YIELD] != 0:
        give_way(memory[YIELD])


@internal
def _claimed(at):
    """A piece of the open phase: its number, or -1 where none is left."""
    ticket = at + 8 * TICKET
    while True:
        found = load(ticket)
        left = found & ((1 << _PIECES) - 1)
        if left == 0:
            return -1
        if swap(ticket, found, found - 1):
            return left - 1


@internal
def _share(at, memory, body, argument, pieces):
    """Compute the pieces of a phase, with who helps."""
    if pieces <= 1 or memory[THREADS] <= 1:
        for piece in range(pieces):
            call(body, memory[CONTEXT], argument, piece)
        return
    memory[BODY], memory[ARGUMENT], memory[DONE] = body, argument, 0
    phase = (load(at + 8 * TICKET) >> _PIECES) + 1
    store(at + 8 * TICKET, (phase << _PIECES) | pieces)
    mine = 0
    while True:
        piece = _claimed(at)
        if piece < 0:
            break
        call(body, memory[CONTEXT], argument, piece)
        mine += 1
    turns = np.int64(0)
    while load(at + 8 * DONE) + mine < pieces:
        _wait(memory, turns)
        turns += 1


@internal
def run(at, body, argument, pieces):
    """Of the driver: compute `body(context, argument, piece)` for each piece; return when all are done.

    Args:
        at: address of the team's memory.
        body: of a `PIECE`.
    """
    if pieces <= 0:
        return
    memory = carray(as_pointer(at), (_FIELDS,), np.int64)
    if memory[TRACE] == 0:
        _share(at, memory, body, argument, pieces)
        return
    head = carray(as_pointer(memory[TRACE]), (TRACED,), np.int64)
    began = now(head[0])
    _share(at, memory, body, argument, pieces)
    if head[1] < head[2]:
        row = carray(as_pointer(memory[TRACE] + 8 * TRACED * (1 + head[1])), (TRACED,), np.int64)
        row[0], row[1], row[2] = body, argument, now(head[0]) - began
        head[1] += 1


@njit(cache=True, nogil=True)
def _help(memory):
    """Of a helper: compute pieces; return when there has been nothing to do for a while."""
    at = memory.ctypes.data
    add(at + 8 * ASLEEP, -1)
    turns = np.int64(0)
    while True:
        piece = _claimed(at)
        if piece >= 0:
            # The phase stays what it is until this piece is done.
            call(memory[BODY], memory[CONTEXT], memory[ARGUMENT], piece)
            add(at + 8 * DONE, 1)
            turns = np.int64(0)
        elif turns < _PATIENCE:
            _wait(memory, turns)
            turns += 1
        else:
            add(at + 8 * ASLEEP, 1)
            return


@njit(cache=True, nogil=True)
def _drive(memory, driver):
    call(driver, memory.ctypes.data, memory[CONTEXT])


class Team:
    """The threads that compute together. One run at a time.

    Args:
        threads: of the team, the driver included.
    """

    def __init__(self, threads: int) -> None:
        whole = np.zeros(_FIELDS + APART, np.int64)
        start = -whole.ctypes.data // 8 % APART  # so that no two fields lie in one cache line
        self.memory = whole[start : start + _FIELDS]
        self.memory[THREADS], self.memory[YIELD] = threads, _address_of("sched_yield")
        self.memory[ASLEEP] = threads - 1
        over = threading.Event()
        self._bells = [threading.Lock() for _ in range(threads - 1)]
        for bell in self._bells:
            bell.acquire()
            threading.Thread(
                target=_helper, args=(self.memory, bell, over), daemon=True, name="step helper"
            ).start()
        weakref.finalize(self, _dismiss, self._bells, over)

    def drive(self, driver: int, context: int) -> None:
        """Run the `DRIVER` at that address; `context` is for it and for the pieces of its phases."""
        self.memory[CONTEXT] = context
        if self.memory[ASLEEP] > 0:
            for bell in self._bells:
                if bell.locked():
                    bell.release()  # one that is awake comes round once more, and finds nothing to do
        _drive(self.memory, driver)

    @contextmanager
    def traced(self, most: int) -> Iterator[list[tuple[int, int, int]]]:
        """Note the first `most` phases of the runs inside: (body, argument, nanoseconds), oldest first, in a
        list that is filled when the block ends.
        """
        trace = np.zeros((1 + most, TRACED), np.int64)
        trace[0] = _address_of("clock_gettime"), 0, most
        found: list[tuple[int, int, int]] = []
        self.memory[TRACE] = trace.ctypes.data
        try:
            yield found
        finally:
            self.memory[TRACE] = 0
        found += map(tuple, trace[1 : 1 + trace[0, 1]].tolist())


def _helper(memory: np.ndarray[Any, Any], bell: threading.Lock, over: threading.Event) -> None:
    bell.acquire()
    while not over.is_set():
        _help(memory)
        bell.acquire()


def _dismiss(bells: Sequence[threading.Lock], over: threading.Event) -> None:
    """A team that nobody holds any more ends."""
    over.set()
    for bell in bells:
        if bell.locked():
            bell.release()
