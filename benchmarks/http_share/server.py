"""The server in this process, where its threads and steps can be looked at."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import cast

from brainstacks.engine.async_engine import AsyncEngine
from server import log
from server.__main__ import make_server
from server.opening import engine_config, open_engine, settle
from server.settings import Settings

LOOK_SECONDS = 0.01


@contextmanager
def opened(settings: Settings) -> Iterator[AsyncEngine]:
    """The engine, in a process that is set up as `python -m server` sets its own up; its log goes nowhere.

    The caller closes it, on the loop that it was used on.
    """
    engine = cast(AsyncEngine, open_engine(settings, engine_config(settings)))
    logger, interval = logging.getLogger(), sys.getswitchinterval()
    level = logger.level
    with open(os.devnull, "w") as nowhere:
        handler = logging.StreamHandler(nowhere)
        handler.setFormatter(log.TextFormatter())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        settle()
        try:
            yield engine
        finally:
            gc.unfreeze()
            sys.setswitchinterval(interval)
            logger.setLevel(level)
            logger.removeHandler(handler)


@asynccontextmanager
async def listening(engine: AsyncEngine, settings: Settings) -> AsyncIterator[tuple[str, int]]:
    """The server over it, on this loop: its host and port. The engine is closed at the end."""
    server = make_server(engine, settings)
    serving = asyncio.ensure_future(server.serve())
    try:
        while not server.started:
            await asyncio.wait((serving,), timeout=LOOK_SECONDS)
            if serving.done():
                raise RuntimeError(f"the server did not start: {serving.exception()}")
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield host, port
    finally:
        server.should_exit = True
        await asyncio.wait((serving,))
        await engine.close()
