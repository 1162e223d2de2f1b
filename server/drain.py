"""A uvicorn server that stops as a load balancer wants it to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from brainstacks.engine.interface import Engine

logger = logging.getLogger("brainstacks.server")


class DrainingServer(uvicorn.Server):
    """On SIGTERM or SIGINT it keeps listening while the engine drains, then stops and exits 0.

    While it drains `/ready` answers 503 and so does new work (the engine refuses it), which tells a load
    balancer to go elsewhere; uvicorn's own way is to close the port at once. A second signal stops now.
    SIGHUP calls `reload`.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        engine: Engine,
        drain_timeout: float,
        reload: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self.engine = engine
        self.drain_timeout = drain_timeout
        self.reload = reload
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._signals = 0

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but without raising the signal again at the end: a drained server exits 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        original = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        original[signal.SIGHUP] = signal.signal(signal.SIGHUP, self.handle_hangup)
        try:
            yield
        finally:
            for each, handler in original.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1 or self._loop is None:
            self.should_exit = self.force_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin)

    def handle_hangup(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.reload)

    def _begin(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        logger.info("draining: running requests have %.0f s", self.drain_timeout)
        try:
            await self.engine.drain(self.drain_timeout)
        except Exception:
            logger.exception("draining failed; stopping at once")
        self.should_exit = True
