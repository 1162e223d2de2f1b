"""The outermost layer: every request has an id, is counted, and gets a reply whatever breaks below."""

from __future__ import annotations

import re
import time
import uuid
from urllib.parse import quote

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import log
from server.errors import reply
from server.keys import Keys
from server.metrics import Metrics
from server.summary import Summary
from server.tracing import HEADERS, Tracing

_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Of every page, whichever route gives it."""


class RequestContext:
    """ASGI middleware that fills `request.state`: `request_id`, `begin` (seconds, `time.perf_counter`),
    `caller` (the API key, if it is known), `key` (its name) and `tenant` (whose it is; both empty without),
    and `summary`, which is told when the request is over.

    A client's own `x-request-id` is kept when it is 1-128 of [A-Za-z0-9._-] and no running request of its
    tenant has it; otherwise a new one is drawn. The reply's `x-request-id` tells which. A reply that comes
    before the whole body has been read closes the connection: nobody reads the rest.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, keys: Keys, tracing: Tracing | None) -> None:
        self.app = app
        self.metrics = metrics
        self.keys = keys
        self.tracing = tracing
        self.running: set[tuple[str | None, str]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        caller = state["caller"] = self.keys.caller(scope)
        state["key"] = caller.name if caller else ""
        state["tenant"] = caller.tenant if caller else ""
        claimed = self.claim(scope, caller.tenant if caller else None)
        request_id = state["request_id"] = claimed[1]
        state["begin"] = time.perf_counter()
        summary = state["summary"] = Summary(
            request_id=request_id,
            key=state["key"],
            client=scope["client"][0] if scope.get("client") else "",
            method=scope["method"],
            path=quote(scope["path"])[:200],
            begin=state["begin"],
        )
        begun = False
        body_read = not sends_body(scope)

        async def noted() -> Message:
            nonlocal body_read
            message = await receive()
            body_read = body_read or not message.get("more_body", False)
            return message

        async def tagged(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if headers.get("content-type", "").startswith("text/html"):
                    headers.update(PAGE_HEADERS)
                if not body_read:
                    headers["connection"] = "close"
                summary.status = message["status"]
                self.metrics.responses.labels(state["key"], str(summary.status)).inc()
                if summary.status >= 400:
                    summary.error = state.get("error_code") or "http_error"
                    self.metrics.errors.labels(summary.error).inc()
            await send(message)

        try:
            await self.app(scope, noted, tagged)
        except Exception as error:
            response = reply(scope, error)  # logs the trace, also when it is too late to send
            if not begun:
                await response(scope, receive, tagged)
        finally:
            self.running.discard(claimed)
            summary.end = time.perf_counter()
            if self.tracing is not None:
                self.tracing.write(summary, trace_headers(scope))
            log.write(summary)

    def claim(self, scope: Scope, tenant: str | None) -> tuple[str | None, str]:
        """Whose it is, and the request's id, reserved until the request ends."""
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given.decode("ascii") if _SANE_ID.fullmatch(given) else ""
        if not request_id or (tenant, request_id) in self.running:
            request_id = uuid.uuid4().hex
        self.running.add((tenant, request_id))
        return tenant, request_id


def trace_headers(scope: Scope) -> dict[str, str]:
    """Those of `tracing.HEADERS` that a request came with."""
    given = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
    return {name: value for name, value in given if name in HEADERS}


def sends_body(scope: Scope) -> bool:
    """Whether the client announces one."""
    headers = dict(scope["headers"])
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
