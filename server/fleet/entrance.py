"""In front of Ray Serve's routing: what a request would like, and replies that end as ours do."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import SERVER, error_body
from server.fleet.addressed import HEADER as REPLICA
from server.fleet.wish import ASKING, Asked, Wish, asked
from server.sse import DONE, event

SESSION = b"x-session-id"
"""Ray Serve hands this header to its request router; a client's own names its conversation."""
MOST = 1 << 20
"""Bytes of a body that are looked at; a longer one goes by load."""
PATIENCE = 1.0
"""Seconds until that must have come; replicas have limits of their own for slow bodies."""
KEPT = 10_000
"""Conversations, and answered requests, that are remembered."""

_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_RECORD = re.compile(r"/v1/routing/([^/]+)")

T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """Where a conversation was computed, and with which stacks."""

    replica: str
    stacks: tuple[str, ...]


class Recent(Generic[T]):
    """The last `KEPT` values, by key."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, T] = OrderedDict()

    def get(self, key: bytes) -> T | None:
        return self._kept.get(key)

    def put(self, key: bytes, value: T) -> None:
        self._kept[key] = value
        self._kept.move_to_end(key)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)


class Entrance:
    """ASGI middleware of the process that listens; one for all replicas, or one a machine.

    It reads as much of a prompt as tells its conversation, remembers where that was computed, and asks for
    the same. A stream whose replica is lost ends with an error event, any other request with a reply of ours.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.turns = Recent[Turn]()
        self.answered = Recent[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # of Ray Serve itself
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope)
        begun: list[Message] = []
        belongs: Asked | None = None
        if scope["method"] == "POST" and scope["path"] in ASKING:
            begun = await _begun(receive)
            if begun and not begun[-1].get("more_body", False):
                session = given.get(SESSION.decode())
                body = b"".join(message.get("body", b"") for message in begun)
                belongs = asked(body, None if session is None else session.encode("latin-1"))
        scope["headers"] = _headers(scope["headers"], self._wish(scope, given, belongs))
        answer = Answer(scope, send, partial(self._remember, belongs))
        try:
            await self.app(scope, _replayed(begun, receive), answer.send)
        finally:
            await answer.finish()

    def _wish(self, scope: Scope, given: Headers, belongs: Asked | None) -> Wish:
        if record := _RECORD.fullmatch(scope["path"]):
            return Wish(last=self.answered.get(record[1].encode()))
        turn = None if belongs is None else self.turns.get(belongs.conversation)
        named = () if belongs is None else belongs.stacks
        last, stacks = (None, ()) if turn is None else (turn.replica, turn.stacks)
        return Wish(given.get(REPLICA), last, named or stacks)

    def _remember(self, belongs: Asked | None, replica: str, headers: Headers) -> None:
        self.answered.put(headers.get("x-request-id", "").encode(), replica)
        composed = headers.get("x-brainstacks-routing")  # `routed;chat=0.850;math=0.900`
        if belongs is not None and composed is not None:
            stacks = tuple(part.partition("=")[0] for part in composed.split(";")[1:])
            self.turns.put(belongs.conversation, Turn(replica, stacks))


class Answer:
    """The reply on its way, watched.

    Args:
        began: called once with the replica whose reply it is, and its headers; not for Ray Serve's own.
    """

    def __init__(self, scope: Scope, send: Send, began: Callable[[str, Headers], None]) -> None:
        self.scope = scope
        self._send = send
        self._began = began
        self._replica: str | None = None
        self._streams = False
        self._refused = False
        self._ended = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = Headers(raw=message["headers"])
            self._replica = headers.get(REPLICA)
            if self._replica is None:
                self._refused = True
                return
            self._began(self._replica, headers)
            self._streams = headers.get("content-type", "").startswith("text/event-stream")
            message = {**message, "headers": list(_once(message["headers"]))}
        elif self._replica is None:
            return  # the text of a reply that is replaced
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def finish(self) -> None:
        """End what was not ended. To a client that has left, sending does nothing."""
        if self._replica is None:
            await _refusal(self._refused)(self.scope, _nothing, self._send)
        elif self._streams and not self._ended:
            for last in (*_broken_off(self.scope["path"]), DONE):
                await self._send({"type": "http.response.body", "body": last, "more_body": True})
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def middlewares() -> list[Middleware]:
    """For RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH."""
    return [Middleware(Entrance)]


def _refusal(refused: bool) -> JSONResponse:
    """The reply to a request that no replica answered: Ray Serve refused it, or the replica was lost."""
    if refused:
        why, code = "No replica can take this now: all are busy, or none has started", "overloaded"
    else:
        why, code = "The replica that computed this was lost before it answered", "replica_lost"
    body = error_body(f"{why}; retry in 1 s", SERVER, None, code)
    return JSONResponse(body, status_code=503, headers={"Retry-After": "1"})


def _broken_off(path: str) -> Iterable[bytes]:
    message = "The replica that computed this was lost in the middle of the answer; send the request again"
    failed: dict[str, Any] = error_body(message, SERVER, None, "replica_lost")
    if path == "/v1/responses":  # where OpenAI has the fields beside the type
        told = {"type": "error", "code": "replica_lost", "message": message, "param": None, **failed}
        return [event(told, "error")]
    return [event(failed)]


def _headers(given: Iterable[tuple[bytes, bytes]], wish: Wish) -> list[tuple[bytes, bytes]]:
    """Without a client's session, whose place the wish takes, and without an id that no log should have."""
    kept = [
        (name, value)
        for name, value in given
        if name.replace(b"_", b"-") != SESSION and (name != b"x-request-id" or _SANE_ID.fullmatch(value))
    ]
    return [*kept, (SESSION, wish.header())]


def _once(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[bytes, bytes]]:
    """Ray Serve adds an `X-Request-ID` of its own."""
    seen = False
    for name, value in headers:
        if name.lower() == b"x-request-id":
            if seen:
                continue
            seen = True
        yield name, value


async def _begun(receive: Receive) -> list[Message]:
    """The body's messages, as many as `MOST` and `PATIENCE` allow; the replica reads the others, and judges
    how slow they are."""
    begun: list[Message] = []
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while size <= MOST and (not begun or begun[-1].get("more_body", False)):
                begun.append(await receive())
                size += len(begun[-1].get("body", b""))
    return begun


def _replayed(begun: list[Message], receive: Receive) -> Receive:
    waiting = iter(begun)

    async def replay() -> Message:
        for message in waiting:
            return message
        return await receive()

    return replay


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
