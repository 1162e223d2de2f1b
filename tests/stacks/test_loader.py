"""The loader: one job after another, on a thread that is gone when there is nothing left to do."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch

from brainstacks.stacks.loader import Loader


def test_jobs_run_in_order_one_at_a_time_and_off_the_callers_thread() -> None:
    loader = Loader()
    ran: list[tuple[int, threading.Thread]] = []

    def job(number: int) -> None:
        ran.append((number, threading.current_thread()))

    for future in [loader.submit(partial(job, number)) for number in range(50)]:
        future.result(timeout=300)
    assert [i for i, _ in ran] == list(range(50))
    assert threading.current_thread() not in {thread for _, thread in ran}


def test_its_thread_ends_and_the_next_job_gets_another() -> None:
    loader = Loader()
    threads: list[threading.Thread] = []
    for _ in range(2):
        loader.submit(lambda: threads.append(threading.current_thread())).result(timeout=300)
        threads[-1].join(timeout=300)
        assert not threads[-1].is_alive()
    assert threads[0] is not threads[1]


def test_a_job_that_fails_tells_its_waiter_and_stops_no_other() -> None:
    loader, done = Loader(), threading.Event()

    def fail() -> None:
        raise LookupError("gone")

    failing, following = loader.submit(fail), loader.submit(done.set)
    with pytest.raises(LookupError, match="gone"):
        failing.result(timeout=300)
    following.result(timeout=300)
    assert done.is_set()


def test_jobs_compute_on_one_thread_and_later_threads_on_as_many_as_before() -> None:
    def threads_of_a_new_thread() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    before, loader = threads_of_a_new_thread(), Loader()
    inside: list[int] = []
    loader.submit(lambda: inside.append(torch.get_num_threads())).result(timeout=300)
    assert inside == [1]
    assert torch.get_num_threads() == loader._threads
    assert threads_of_a_new_thread() == before
