"""Who may call what, decided on the path as it came over the wire, before anything is routed."""

from __future__ import annotations

import hmac
import re
from typing import Literal
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import RequestRefused, reply
from server.hosts import allowed_hosts, check_host
from server.keys import Keys, bearer, digest
from server.settings import Settings
from server.spelling import spelled

Area = Literal["open", "inference", "metrics", "admin"]

INFERENCE = frozenset({"v1", "tokenize", "detokenize", "tokenizer_info"})

_SEPARATOR = re.compile(r"[/\\;\x00-\x20\x7f]")
"""What one system or another takes for the end of a path's segment."""

HOW_TO = "No admin key is configured, so /admin is closed. Start the server with BRAINSTACKS_ADMIN_KEY set"


class Auth:
    """ASGI middleware: Bearer keys for the inference routes and, separately, for the admin routes.

    Whose API key a request brings is in its state already (`RequestContext`).
    """

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys) -> None:
        self.app = app
        self.keys = keys
        self.hosts = allowed_hosts(settings, keys.configured)
        key = settings.admin_key
        self.admin_key = None if key is None else digest(key.get_secret_value().encode())
        self.metrics: Area = "admin" if settings.metrics == "admin" else "open"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self.check(scope)
            except RequestRefused as error:
                await reply(scope, error)(scope, receive, send)
                return
            scope, send = spelled(scope, send)
        await self.app(scope, receive, send)

    def check(self, scope: Scope) -> None:
        """Raises RequestRefused: 401 without the right key, 403 for a closed area or a foreign Host, 400 for
        a crooked path."""
        check_host(scope, self.hosts)
        raw = scope.get("raw_path") or scope["path"].encode()
        area, plain = classify(raw.decode("latin-1"), scope["path"])
        if area == "metrics":
            area = self.metrics
        if area == "admin":
            if self.admin_key is None:
                raise RequestRefused(403, HOW_TO, code="admin_disabled")
            if not hmac.compare_digest(digest(bearer(scope)), self.admin_key):
                raise _unknown(scope, "the admin key")
            if not plain:
                raise RequestRefused(
                    400,
                    "This path has an empty, dotted or encoded-slash segment; "
                    "names are made of a-z, 0-9, '.', '_' and '-', with a letter or a digit first",
                    code="invalid_path",
                )
        elif area == "inference" and self.keys.configured and scope["state"]["caller"] is None:
            raise _unknown(scope, "an API key")


def _unknown(scope: Scope, what: str) -> RequestRefused:
    wrong = "is not known" if any(name == b"authorization" for name, _ in scope["headers"]) else "is missing"
    return RequestRefused(
        401,
        f"The key {wrong}; send {what} as 'Authorization: Bearer KEY'",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def classify(raw_path: str, path: str) -> tuple[Area, bool]:
    """The area that guards a path, and whether the path is plain.

    A plain path means one thing to every reader: no empty segment, none that ends in a dot, no encoded
    slash, no separator of other systems, no double encoding, no scheme in front. It belongs to the area of
    its first segment. Any other path belongs to the admin area if any reading of it names that: whoever
    decodes, normalises or proxies it afterwards cannot open what was closed here.

    Args:
        raw_path: as it came over the wire, percent-encoded.
        path: decoded once, which is what routes are matched with.
    """
    decoded = raw_path
    for _ in range(8):  # what is encoded deeper still is not plain, as it differs from `path`
        decoded = unquote(decoded, errors="replace")
    start, *segments = decoded.split("/")
    if len(segments) > 1 and segments[-1] == "":
        segments.pop()  # a trailing slash
    plain = (
        start == ""
        and decoded == path
        and raw_path.count("/") == decoded.count("/")
        and not _SEPARATOR.search(decoded.replace("/", ""))
        and all(segment and not segment.endswith(".") for segment in segments)
    )
    names = {part.casefold().strip(".") for reading in (decoded, path) for part in _SEPARATOR.split(reading)}
    if plain:
        names = {segments[0].casefold()}
    if "admin" in names:
        return "admin", plain
    if names & INFERENCE:
        return "inference", plain
    return ("metrics" if "metrics" in names else "open"), plain
