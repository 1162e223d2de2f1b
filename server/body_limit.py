"""How much a client may send, and how slowly."""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import RequestRefused, reply
from server.settings import Settings

LEAST_RATE = 16 << 10
"""Bytes per second that a body has to keep up with, after its grace."""


class BodyLimit:
    """ASGI middleware: caps headers and bodies, refuses encoded bodies, closes those that trickle.

    A `Content-Length` over the cap is refused before a byte is read; a body without one is cut off as
    soon as it passes the cap. Files (`PUT /admin/...`) have a cap of their own.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            cap = self.check(scope)
        except RequestRefused as error:
            await reply(scope, error)(scope, receive, send)
            return
        await self.app(scope, self.bounded(receive, cap), send)

    def check(self, scope: Scope) -> int:
        """The cap for this body in bytes. Raises RequestRefused: 400, 413, 415, 431."""
        settings = self.settings
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size > settings.max_header_bytes:
            raise RequestRefused(
                431,
                f"The headers have {size} bytes; at most {settings.max_header_bytes} are taken",
                code="headers_too_large",
            )
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        encoding = headers.get(b"content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise RequestRefused(
                415,
                f"Content-Encoding is {encoding[:40]!r}; send the body as it is, without an encoding",
                code="unsupported_encoding",
                headers={"Accept-Encoding": "identity"},
            )
        upload = scope["method"] == "PUT"
        cap = settings.max_upload_bytes if upload else settings.max_body_bytes
        length = headers.get(b"content-length", "0")
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise RequestRefused(
                400, "Content-Length is not a number of bytes; send the body's size", code="invalid_request"
            )
        if int(length) > cap:
            raise too_large(cap)
        return cap

    def bounded(self, receive: Receive, cap: int) -> Receive:
        """`receive` that raises once the body passes `cap` bytes or falls behind the least rate."""
        received = 0
        complete = False
        begin = time.monotonic()

        async def limited() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            allowed = self.settings.body_grace + received / LEAST_RATE
            try:
                async with asyncio.timeout(begin + allowed - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise RequestRefused(
                    408,
                    f"The body came too slowly: {received} bytes in {allowed:.0f} s; "
                    f"keep to {LEAST_RATE} bytes a second at least",
                    code="body_timeout",
                    headers={"Connection": "close"},
                ) from None
            received += len(message.get("body", b""))
            complete = message["type"] == "http.disconnect" or not message.get("more_body", False)
            if received > cap:
                raise too_large(cap)
            return message

        return limited


def too_large(cap: int) -> RequestRefused:
    return RequestRefused(
        413,
        f"The body is larger than {cap} bytes, the most that is taken here; send less, "
        "or raise --max-body-bytes (JSON) or --max-upload-bytes (files)",
        code="body_too_large",
        headers={"Connection": "close"},
    )
