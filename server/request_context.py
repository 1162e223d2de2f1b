"""The outermost layer: every request has an id, is counted, and gets a reply whatever breaks below."""

from __future__ import annotations

import re
import time
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import reply
from server.metrics import Metrics

_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestContext:
    """ASGI middleware that fills `request.state`: `request_id` and `begin` (seconds, `time.perf_counter`).

    A client's own `x-request-id` is kept when it is 1-128 of [A-Za-z0-9._-] and no running request has
    it; otherwise a new one is drawn. The reply's `x-request-id` tells which.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics
        self.running: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        request_id = state["request_id"] = self.claim(scope)
        state["begin"] = time.perf_counter()
        begun = False

        async def tagged(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
                self.metrics.responses.labels(str(message["status"])).inc()
                if message["status"] >= 400:
                    self.metrics.errors.labels(state.get("error_code") or "http_error").inc()
            await send(message)

        try:
            await self.app(scope, receive, tagged)
        except Exception as error:
            response = reply(scope, error)  # logs the trace, also when it is too late to send
            if not begun:
                await response(scope, receive, tagged)
        finally:
            self.running.discard(request_id)

    def claim(self, scope: Scope) -> str:
        """The request's id, reserved until the request ends."""
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given.decode("ascii") if _SANE_ID.fullmatch(given) else ""
        if not request_id or request_id in self.running:
            request_id = uuid.uuid4().hex
        self.running.add(request_id)
        return request_id
