"""Connections as uvicorn has them, and how many, and how long one may say nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import INVALID, error_body

logger = logging.getLogger("brainstacks.server")

RESERVED_FILES = 128
"""Open files that connections leave to everything else: stacks, uploads, the listening socket."""

BACKLOG = 64
"""Connections that are accepted in one turn of the event loop, before any can be counted."""


class Connection(H11Protocol):
    """One client's connection. A subclass, made by `limited`, holds the limits.

    Past `most` connections the one that has waited longest without a request makes room; where all are busy,
    the new one is closed. A request's head has `head_seconds` from the moment that one could come.
    """

    most: int
    head_seconds: float
    idle: dict[Connection, asyncio.TimerHandle]
    """Those without a request, the longest first, and when each is closed."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            for oldest in self.idle:
                oldest._forget()  # at once: the next of those that are accepted in this turn takes another
                oldest.transport.abort()
                break
            else:
                self.transport.abort()
                return
        self._settle()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._settle()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._settle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What the parser refuses is answered in the shape of all errors, and in place of an answer that has
        not begun: a body may break off as none may while its request is being refused already."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # so that what it still sends goes nowhere
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        message = "This is not a request that HTTP/1.1 allows, or its headers are too large; mend the client"
        body = json.dumps(error_body(message, INVALID, None, "invalid_http")).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        headers.append((b"content-length", str(len(body)).encode()))
        for event in (
            h11.Response(status_code=400, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _settle(self) -> None:
        """Count the time of a connection without a request, from when it has none."""
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            self._forget()
        elif self not in self.idle:
            self.idle[self] = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _forget(self) -> None:
        timer = self.idle.pop(self, None)
        if timer is not None:
            timer.cancel()


def limited(most: int, head_seconds: float) -> type[Connection]:
    """The connections of one server."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    fit = most if files == resource.RLIM_INFINITY else min(most, max(1, files - RESERVED_FILES))
    if fit < most:
        logger.info("at most %d connections are kept: only %d files may be open (ulimit -n)", fit, files)
    limits: dict[str, Any] = {"most": fit, "head_seconds": head_seconds, "idle": {}}
    return type("LimitedConnection", (Connection,), limits)
