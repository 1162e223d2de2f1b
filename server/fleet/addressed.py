"""A replica says which one it is, and answers for no other."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from brainstacks.errors import NotFound
from server.errors import reply

HEADER = "x-brainstacks-replica"


class Addressed:
    """ASGI middleware: replies carry the replica's name; a request that names another is refused (404)."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self.app = app
        self.name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = self.name
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = next((value for name, value in scope["headers"] if name == HEADER.encode()), None)
        if asked is None or asked == self.name.encode():
            await self.app(scope, receive, signed)
            return
        message = (
            f"There is no replica {asked.decode('latin-1')[:64]!r}; GET /admin/stacks lists those there are"
        )
        await reply(scope, NotFound(message, param=HEADER, code="replica_not_found"))(scope, receive, signed)
