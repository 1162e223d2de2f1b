"""Run something on a thread that ends with it.

Every thread that computes with OpenMP keeps a team of workers for as long as it lives. Once the process has
more of them than cores, libgomp stops spinning between parallel regions and sleeps instead, and each of the
many small kernels of a decode step pays a wake-up. So whatever is not the step (loading a base, packing a
bank) computes on a thread whose team goes away with it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


NICENESS = 10
"""Of what runs beside the step: where cores are few, the step goes first."""


def start(function: Callable[[], T], name: str) -> Future[T]:
    """Run `function` in the background, on a new thread that the step's threads are preferred to (on Linux,
    where a thread has a priority of its own); its result or exception is in the future.
    """

    def run() -> T:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        return function()

    return _start(run, name)


def call(function: Callable[[], T], name: str) -> T:
    """Run `function` on a new thread, wait for it, and return its result or raise its exception."""
    return _start(function, name).result()


def _start(function: Callable[[], T], name: str) -> Future[T]:
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # it cannot be cancelled any more: a waiter may only leave

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
