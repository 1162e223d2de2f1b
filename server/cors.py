"""Which web pages of other origins may call the inference routes: those of `--cors-origin`."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.auth import classify
from server.errors import RequestRefused, reply
from server.settings import Settings

EXPOSED = ("x-request-id", "x-brainstacks-routing", "x-brainstacks-ignored", "retry-after")


class Cors(CORSMiddleware):
    """ASGI middleware, in front of `Auth`: a preflight carries no key, and opens nothing but its own answer.

    Cookies are never asked for, and the admin area stays closed to pages of other origins.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        super().__init__(
            app,
            allow_origins=settings.cors_origin,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            raw = scope.get("raw_path") or scope["path"].encode()
            if not self.allow_origins and not self.allow_all_origins:
                await self.app(scope, receive, send)
                return
            if classify(raw.decode("latin-1"), scope["path"])[0] == "admin":
                await self.app(scope, receive, send)
                return
        await super().__call__(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        origin = request_headers["origin"][:200]
        method = request_headers["access-control-request-method"][:20]
        refused = RequestRefused(
            400,
            f"A page of the origin {origin!r} may not send {method!r}; those of --cors-origin "
            "may send GET, HEAD and POST",
            code="cors_refused",
        )
        return reply({"type": "http"}, refused)
