"""Server-sent events, and what happens when nobody reads them any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"

_ENCODE = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
"""One for every token of all streams: `json.dumps` would make it anew each time."""

T = TypeVar("T")


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event. ASCII only, because some clients split lines at U+2028 and its like."""
    named = b"" if name is None else b"event: " + name.encode("ascii") + b"\n"
    return named + b"data: " + _ENCODE(data).encode("ascii") + b"\n\n"


class EventStream(Response):
    """Sends `events` as they come; stops, and runs `close`, as soon as they end or the client is gone.

    Args:
        events: complete ones, but for the last, `DONE`.
        failed: the events that tell of an error in the middle of them.
        close: frees what `events` draws from; always awaited, once.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        failed: Callable[[Exception], Iterable[bytes]],
        close: Callable[[], Awaitable[None]],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.events = events
        self.failed = failed
        self.close = close
        self.status_code = 200
        self.background = None
        # Proxies such as nginx would otherwise collect the stream and deliver it at the end.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._send_all(send))
        except ClientDisconnect:
            return  # nobody is left to be told
        finally:
            await self.close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        told: Iterable[bytes] = ()
        while True:
            try:  # around what is told, and not around telling it
                chunk = await anext(self.events)
            except StopAsyncIteration:
                break
            except Exception as error:
                told = self.failed(error)
                break
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        for last in (*told, DONE):
            await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away first.

    The body must have been read: from then on all that `receive` can tell is that the client left.

    Raises:
        ClientDisconnect: the client left.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if gone.done():  # even if `work` is done too: a server need not say twice that the client left
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
