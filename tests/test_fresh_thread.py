"""brainstacks.fresh_thread: what is computed off the step leaves no thread, and so no OpenMP team, behind."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from brainstacks import fresh_thread


def test_the_result_comes_back_from_a_thread_that_is_gone_afterwards() -> None:
    thread = fresh_thread.call(threading.current_thread, "work")
    thread.join(timeout=10)
    assert thread is not threading.current_thread()
    assert thread.name == "work"
    assert not thread.is_alive()


def test_an_exception_reaches_the_caller() -> None:
    def fail() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        fresh_thread.call(fail, "work")


def test_a_waiter_that_leaves_does_not_stop_the_work() -> None:
    release, done = threading.Event(), threading.Event()

    def work() -> None:
        release.wait(10)
        done.set()

    future = fresh_thread.start(work, "work")
    assert not future.cancel()
    release.set()
    assert done.wait(10)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux only")
def test_work_in_the_background_gives_way_and_work_that_is_waited_for_does_not() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    usual = niceness()
    assert fresh_thread.start(niceness, "work").result(10) == max(usual, fresh_thread.NICENESS)
    assert fresh_thread.call(niceness, "work") == niceness() == usual
