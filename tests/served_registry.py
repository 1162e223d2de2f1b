"""A server on a real socket, in this process; by default over a registry without an engine."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from pydantic import SecretStr

from brainstacks.engine.interface import Engine
from brainstacks.stacks.registry import Registry
from server.__main__ import make_server
from server.settings import Settings
from tests.server.fake_engine import FakeEngine
from tests.server.registry_stacks import RegistryStacks

KEY = "admin-secret"


class Listening:
    """A server on a thread, which closes `engine` when it stops.

    Attributes:
        url: where it listens.
    """

    def __init__(self, engine: Engine, **settings: Any) -> None:
        self._closing = engine.close
        self._server = make_server(
            engine, Settings(port=0, admin_key=SecretStr(KEY), max_upload_bytes=1 << 16, **settings)
        )
        self._up = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),))
        self._thread.start()
        assert self._up.wait(60)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    async def _run(self) -> None:
        startup = self._server.startup

        async def tell(*arguments: object, **options: object) -> None:
            await startup(*arguments, **options)  # type: ignore[arg-type]
            self._up.set()

        self._server.startup = tell  # type: ignore[method-assign]
        try:
            await self._server.serve()
        finally:
            await self._closing()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)


class Serving(Listening):
    """The same over a registry without an engine.

    Attributes:
        engine: behind it; its stacks are those of `registry`.
    """

    def __init__(self, registry: Registry) -> None:
        self.engine = FakeEngine()
        self.registry = registry
        self.stacks = RegistryStacks(self.engine, registry)
        self.engine.stacks = self.stacks
        super().__init__(self.engine)
