"""Every piece of every phase is computed once, whoever is there to compute it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from numba import carray, cfunc, njit

from brainstacks.kernels import atomics, team
from brainstacks.kernels.atomics import as_pointer
from brainstacks.kernels.team import ASLEEP, CONTEXT, DRIVER, PIECE, THREADS, Team, run

PHASES, PIECES, BODY = 0, 1, 2
"""Of a context [3 + phases + pieces] int64: how many, pieces of each, and the address of `body`."""
FIRST = 3
"""Where the counts of each phase's pieces begin: in each phase, how many pieces were done out of turn; then
how often each piece was computed."""

MANY = 3000


def _body(context: Any, phase: Any, piece: Any) -> None:
    """Count the piece, in a cell of its own; and check that all of the phase before are there."""
    head = carray(as_pointer(context), (3,), np.int64)
    pieces = head[PIECES]
    memory = carray(as_pointer(context), (FIRST + head[PHASES] * (1 + pieces),), np.int64)
    counts = memory[FIRST + head[PHASES] :]
    if phase > 0:
        before = counts[(phase - 1) * pieces : phase * pieces]
        if before[piece] != 1 or before[pieces - 1 - piece] != 1:
            memory[FIRST + phase] += 1
    counts[phase * pieces + piece] += 1


body = cfunc(PIECE, cache=True)(_body)


def _phases(at: Any, context: Any) -> None:
    head = carray(as_pointer(context), (3,), np.int64)
    for phase in range(head[PHASES]):
        run(at, head[BODY], phase, head[PIECES])


phases_of = njit(_phases)


def _driver(at: Any, context: Any) -> None:
    phases_of(at, context)


driver = cfunc(DRIVER)(_driver)


class Work:
    """Some phases of so many pieces."""

    def __init__(self, phases: int, pieces: int) -> None:
        self.memory = np.zeros(FIRST + phases * (1 + pieces), np.int64)
        self.memory[:FIRST] = phases, pieces, body.address
        self.late = self.memory[FIRST : FIRST + phases]
        self.counts = self.memory[FIRST + phases :]

    def driven_by(self, some: Team) -> Work:
        some.drive(int(driver.address), self.memory.ctypes.data)
        return self

    @property
    def right(self) -> bool:
        return bool((self.counts == 1).all()) and not self.late.any()


def _wait_for_the_other(context: Any, phase: Any, piece: Any) -> None:
    """Say that this piece has begun, and wait a while for the other one; count it if that is in vain."""
    atomics.store(context + 8 * piece, 1)
    for _ in range(1_000_000):
        if atomics.load(context + 8 * (1 - piece)) != 0:
            return
    atomics.add(context + 8 * 2, 1)


wait_for_the_other = cfunc(PIECE)(_wait_for_the_other)


def _meeting(at: Any, context: Any) -> None:
    run(at, carray(as_pointer(context), (4,), np.int64)[3], 0, 2)


meeting = cfunc(DRIVER)(_meeting)


def meet(both: Team) -> bool:
    """Whether two threads compute two pieces at once, in some run of a minute: the other one may have to be
    compiled first, and a busy machine may delay either.
    """
    end = time.monotonic() + 60
    while time.monotonic() < end:
        memory = np.array([0, 0, 0, int(wait_for_the_other.address)], np.int64)
        both.drive(int(meeting.address), memory.ctypes.data)
        if memory[2] == 0:
            return True
    return False


@pytest.fixture(scope="module", params=[1, 2, 4])
def some(request: pytest.FixtureRequest) -> Team:
    return Team(request.param)


@pytest.mark.parametrize("pieces", [0, 1, 2, 3, MANY])
@pytest.mark.parametrize("phases", [0, 1, 300])
def test_every_piece_of_every_phase_is_computed_once_and_in_turn(
    some: Team, phases: int, pieces: int
) -> None:
    phases = min(phases, 20) if pieces == MANY else phases
    assert Work(phases, pieces).driven_by(some).right


def test_helpers_that_have_fallen_asleep_are_woken() -> None:
    both = Team(2)
    assert both.memory[ASLEEP] == 1
    for _ in range(20):
        assert Work(3, 50).driven_by(both).right
    while both.memory[ASLEEP] == 0:  # on a busy machine this takes its turns of the core: seconds
        os.sched_yield()
    assert meet(both)
    assert Work(3, 50).driven_by(both).right


def test_a_helper_that_is_not_running_delays_nothing() -> None:
    """A team of four of which nobody but the driver is there."""
    alone = Team(1)
    alone.memory[THREADS] = 4
    assert Work(100, 40).driven_by(alone).right


def test_helpers_compute_pieces_too() -> None:
    assert meet(Team(2))


def test_more_threads_than_cores_come_to_an_end() -> None:
    crowd = Team(4 * (os.cpu_count() or 1))
    for _ in range(10):
        assert Work(30, 100).driven_by(crowd).right


def test_two_teams_at_once_do_not_disturb_each_other() -> None:
    done: list[bool] = []

    def compute() -> None:
        own = Team(2)
        done.append(all(Work(20, 100).driven_by(own).right for _ in range(20)))

    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [True, True]


def test_without_sched_yield_they_compute_all_the_same() -> None:
    plain = Team(2)
    plain.memory[team.YIELD] = 0
    assert Work(30, 100).driven_by(plain).right


def test_no_two_fields_lie_in_one_cache_line() -> None:
    memory = Team(1).memory
    assert memory.ctypes.data % 64 == 0
    assert len(memory) == 72


def test_the_context_of_a_run_is_its_own() -> None:
    some = Team(2)
    first, second = Work(2, 9).driven_by(some), Work(2, 9).driven_by(some)
    assert first.right
    assert second.right
    assert some.memory[CONTEXT] == second.memory.ctypes.data


def test_a_process_ends_while_helpers_sleep() -> None:
    code = "from brainstacks.kernels.team import Team; Team(3)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
