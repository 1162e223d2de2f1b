"""The thread that owns the engine: it steps, and between steps does what others ask of it."""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

import torch

from brainstacks.device import is_lost, reclaim, use
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.replies import Outbox, Sink
from brainstacks.errors import BrainstacksError, EngineFailure, Unavailable
from brainstacks.stacks.loader import as_reply

log = logging.getLogger(__name__)

SELF_CHECKS = (0.0, 1.0, 2.0)
"""Seconds before each try to compute, after a failure; when none succeeds, the device is broken. One that is
lost (see `device.is_lost`) is not tried again."""

STOP_SECONDS = 10.0
"""What the thread has for its last step. One that never ends, on a device that hangs, does not hold up the
end of the process, which takes the thread with it."""


class EngineThread:
    """Started at once.

    Attributes:
        outbox: where requests' sinks put what they are told.
        self_check: computes something, and raises where the device does not; called after what failed.
        problem: what is wrong with the device, since the last check failed; None when it computes.
        ended: done when the thread is over, whatever ended it.
    """

    def __init__(self, engine: StepEngine) -> None:
        self.outbox = Outbox()
        self.self_check: Callable[[], None] = _nothing
        self.problem: str | None = None
        self.ended: Future[None] = Future()
        self._stopping = threading.Event()
        self._engine = engine
        self._devices = engine.base.devices
        self._in_doubt = False  # something failed on the device, and no check has succeeded since
        self._commands: queue.SimpleQueue[tuple[Callable[[], None], Sink | None] | None] = queue.SimpleQueue()
        engine.set_on_change(lambda: self.put(_nothing))  # wakes the thread: something can run now
        self._ending = threading.Lock()  # guards the two that follow
        self._ended = False
        self._called: set[Future[None]] = set()
        self._turn: float | None = None  # when what it does now began; None while it has nothing to do
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return not self.ended.done()

    def put(self, command: Callable[[], None], sink: Sink | None = None) -> None:
        """Have `command` called before the next step; `sink` gets what it raises."""
        self._commands.put((command, sink))

    def call(self, command: Callable[[], None]) -> None:
        """Run `command` between two steps, wait for it, and raise what it raises; from another thread.

        Raises:
            Unavailable: the thread has ended, or ends before it comes to that.
        """
        done: Future[None] = Future()

        def run() -> None:
            try:
                command()
            except Exception as error:
                if not isinstance(error, BrainstacksError):
                    log.exception("the engine could not do what it was asked")
                    self._in_doubt = True
                    reclaim(error)
                done.set_exception(as_reply(error, "what was asked of the engine"))
            else:
                done.set_result(None)

        with self._ending:
            if self._ended:
                raise Unavailable("the engine has stopped; restart the server")
            self._called.add(done)
        self.put(run)
        try:
            done.result()
        finally:
            self._called.discard(done)

    def silence(self) -> float:
        """Seconds since it last came round; 0 while it waits for something to do, infinite when it ended."""
        if not self.alive:
            return math.inf
        turn = self._turn
        return 0.0 if turn is None else time.monotonic() - turn

    async def stop(self) -> None:
        """End it, once it has done what it was asked before, or after `STOP_SECONDS`."""
        self._stopping.set()
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join, STOP_SECONDS)
        if self.alive:
            log.error("the engine's thread has not ended after %.0f s and is left behind", STOP_SECONDS)

    def _run(self) -> None:
        """Commands between steps; blocks on the queue when nothing can run."""
        use(self._devices[0])
        if self._engine.backend.own_threads:
            # Of this thread alone: a team of torch's that spins between two small operators, such as the
            # sampler's, takes the cores from the step's own; and where others want them too, waiting for each
            # of its members at each operator slows a step out of all proportion.
            torch.set_num_threads(1)
        try:
            while True:
                while not self._engine.can_step or not self._commands.empty():
                    self._turn = None
                    asked = self._commands.get()
                    self._turn = time.monotonic()
                    if asked is None:
                        return
                    command, sink = asked
                    try:
                        command()
                    except Exception as error:
                        if not isinstance(error, BrainstacksError):
                            log.exception("the engine could not do what it was asked")
                            error = EngineFailure("the engine could not take the request in; retry")
                        if sink is not None:
                            sink(error)
                    self.outbox.flush()
                    if self._in_doubt and not self._computes():
                        return
                self._turn = time.monotonic()
                failures = self._engine.failures
                self._engine.step()
                self.outbox.flush()
                self._in_doubt = self._engine.failures > failures
                if self._in_doubt and not self._computes():
                    return
        except Exception as error:
            self.problem = f"the engine's thread failed ({type(error).__name__})"
            log.exception("the engine's thread failed")
        finally:
            self._refuse_all()

    def _computes(self) -> bool:
        """Whether the device does, so that what failed had its own reason."""
        for seconds in SELF_CHECKS:
            if self._stopping.wait(seconds):
                return False
            try:
                self.self_check()
            except Exception as error:
                self.problem = f"the device does not compute ({type(error).__name__})"
                log.exception("after something failed, the device does not compute a short prompt either")
                reclaim(error)
                lost = [str(device) for device in self._devices if is_lost(device)]
                if lost:
                    self.problem = f"{', '.join(lost)} is lost to this process ({type(error).__name__})"
                    return False
            else:
                self.problem, self._in_doubt = None, False
                return True
        return False

    def _refuse_all(self) -> None:
        """At the end: requests and calls that are here, and all that come later."""
        gone = Unavailable("the engine has stopped; retry with another server, or when this one is back")
        try:
            with suppress(queue.Empty):
                while True:
                    asked = self._commands.get_nowait()
                    if asked is not None and asked[1] is not None:
                        asked[1](gone)
            self._engine.abort_all(gone)
            self.outbox.flush()
        finally:
            self._refuse_calls()
            self.ended.set_result(None)

    def _refuse_calls(self) -> None:
        """At the end: those that wait, and all that come later."""
        with self._ending:
            self._ended = True
            for done in list(self._called):
                if not done.done():
                    done.set_exception(Unavailable("the engine has stopped; restart the server"))


def _nothing() -> None:
    """A command that only wakes the thread."""
