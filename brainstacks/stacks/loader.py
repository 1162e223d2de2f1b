"""The thread on which stacks are read, packed and moved."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

import torch

from brainstacks import fresh_thread
from brainstacks.device import is_out_of_memory
from brainstacks.errors import BrainstacksError, EngineFailure, Unavailable

log = logging.getLogger(__name__)


class Loader:
    """Runs jobs one after another, on a thread that ends when there are none (see `fresh_thread`).

    Packing is many small copies. A team of threads for each would fight the step's for the cores, which
    makes both slow; so jobs compute on their own thread alone.
    """

    def __init__(self) -> None:
        self._threads = torch.get_num_threads()
        self._lock = threading.Lock()
        self._jobs: deque[tuple[Callable[[], object], Future[None]]] = deque()
        self._running = False

    def submit(self, job: Callable[[], object]) -> Future[None]:
        done: Future[None] = Future()
        with self._lock:
            self._jobs.append((job, done))
            if not self._running:
                self._running = True
                fresh_thread.start(self._run, "residency")
        return done

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._running = False
                    return
                job, done = self._jobs.popleft()
            torch.set_num_threads(1)
            try:
                job()
            except Exception as error:
                log.exception("a change of what is resident failed")
                outcome = partial(done.set_exception, error)
            else:
                outcome = partial(done.set_result, None)
            torch.set_num_threads(self._threads)  # what threads that come later start with
            outcome()


def as_reply(error: Exception, what: str) -> BrainstacksError:
    """What a client is told of an error in `what`; nothing internal."""
    if isinstance(error, BrainstacksError):
        return error
    if is_out_of_memory(error):
        return Unavailable(f"{what} found no room in the device's memory; retry later, or ask for less")
    return EngineFailure(f"{what} failed; the server's log says why, and it goes on with others; retry")


def load_failed(error: Exception, domain: str, version: int) -> BrainstacksError:
    """`as_reply` of a load."""
    reply = as_reply(error, f"the load of {domain} version {version}")
    if reply is not error:
        log.error("%s", reply.message, exc_info=error)
    return reply
