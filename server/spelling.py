"""Other spellings of a route: HEAD where GET is, and a trailing slash."""

from __future__ import annotations

from starlette.types import Message, Scope, Send


def spelled(scope: Scope, send: Send) -> tuple[Scope, Send]:
    """What the routes are to see of a request whose path was decided on as it came over the wire (`Auth`).

    One slash that ends the path is dropped. HEAD is answered as GET would be, without the body.
    """
    path: str = scope["path"]
    raw: bytes = scope.get("raw_path") or path.encode()
    changed: Scope = {}
    # Not of `//`, and not an encoded slash: those are other paths, which no route has.
    if len(path) > 1 and path.endswith("/") and not path.endswith("//") and raw.endswith(b"/"):
        changed.update(path=path[:-1], raw_path=raw[:-1])
    head = scope["method"] == "HEAD"
    if head:
        changed["method"] = "GET"
    # A new scope: whoever stands before goes on to see what was sent. `state` is one for both.
    return {**scope, **changed}, _bodiless(send) if head else send


def _bodiless(send: Send) -> Send:
    async def without_body(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return without_body
