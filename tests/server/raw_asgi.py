"""An ASGI client down to the bytes: odd paths, bodies in pieces, leaving in the middle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI
from starlette.types import Message


class RawRequest:
    """One request whose both ends the test holds in its hands.

    `feed` hands over messages of the client; `sent` collects those of the app.
    """

    def __init__(
        self,
        app: FastAPI,
        method: str,
        raw_path: str,
        headers: Iterable[tuple[str, str]] = (),
        path: str | None = None,
    ) -> None:
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: list[Message] = []
        self.progress = asyncio.Event()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(raw_path) if path is None else path,
            "raw_path": raw_path.encode("latin-1"),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
        }
        self.task = asyncio.ensure_future(app(scope, self.inbox.get, self._send))

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        self.progress.set()

    def feed(self, body: bytes = b"", *, more: bool = False) -> None:
        self.inbox.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        self.inbox.put_nowait({"type": "http.disconnect"})

    async def finished(self) -> None:
        await asyncio.wait_for(self.task, 5)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    def json(self) -> Any:
        return json.loads(self.body)


async def send(
    app: FastAPI, method: str, raw_path: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b""
) -> RawRequest:
    """A whole request, answered."""
    request = RawRequest(app, method, raw_path, headers)
    request.feed(body)
    await request.finished()
    return request
