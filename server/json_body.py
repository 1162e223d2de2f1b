"""JSON bodies, read strictly: what two parsers could read in two ways is refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from anyio import to_thread
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from server.errors import RequestRefused

MAX_DEPTH = 32
MAX_VALUES = 1 << 18
"""Most values in one body: what costs is not bytes, but objects."""
MAX_KEYS = 4096
"""Most keys in one object."""
MAX_DIGITS = 400
"""Most digits of an integer, which take time by their square; what is refused here is not shown again."""

LARGE = 16 << 10
"""Bytes from which on a body is read on a thread: many milliseconds are not the event loop's to spend."""

BLOCK = 256 << 10
"""Bytes that are looked through at one go."""

# From one comma or bracket outside a string to the next; there are at most a key and a value between. Nothing
# is given back (`*+`), a missing quote is the end, and every match begins where the last one ended: linear.
_MARK = re.compile(rb'[^",\[\]{}]*+(?:"[^"]*+"?[^",\[\]{}]*+){0,2}+([",\[\]{}]|\Z)')
_BACKSLASHES = re.compile(rb"\\*+")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(body: bytes) -> Any:
    """The value of `body`: UTF-8, no key twice, no NaN or Infinity, at most `MAX_DEPTH` levels, `MAX_VALUES`
    values and `MAX_KEYS` keys in an object. Takes time in proportion to the body's length.

    Raises:
        RequestRefused: 400, naming the rule.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(f"The body is not UTF-8 (byte {error.start}); send UTF-8 JSON") from None
    _check_size(body)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise _refused(f"The body is not JSON: {error.msg} at character {error.pos}") from None
    if _SURROGATE.search(body):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _refused(
                "The body holds half of a surrogate pair (\\ud800..\\udfff); escape both halves, or neither"
            ) from None
    return value


class JsonRequest(Request):
    """A request whose body is JSON; anything else is refused by content type."""

    async def body(self) -> bytes:
        body = await super().body()
        if body:
            _check_content_type(self.headers.get("content-type", ""))
        return body

    async def json(self) -> Any:
        body = await self.body()
        return await to_thread.run_sync(parse_json, body) if len(body) > LARGE else parse_json(body)


class JsonRoute(APIRoute):
    """A route that reads its body through `JsonRequest`, and is noted for the log before anything is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            request.state.summary.route = request.scope["route"].path
            return await handler(JsonRequest(request.scope, request.receive))

        return strict


def _check_content_type(content_type: str) -> None:
    kind, *parameters = [part.strip().lower() for part in content_type.split(";")]
    if kind != "application/json":
        raise RequestRefused(
            415,
            f"Content-Type is {content_type[:80]!r}; send 'application/json'",
            code="unsupported_content_type",
        )
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip(' "') not in ("utf-8", "utf8"):
            raise _refused(f"charset is {value[:40]!r}; JSON is sent as UTF-8")


def _check_size(body: bytes) -> None:
    """Refuse what nests too deep or holds too much, before anything is built of it."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH and body.count(b",") < MAX_VALUES - MAX_DEPTH:
        return
    depth = values = 0
    for mark in _marks(body):
        if mark in b"]}":
            depth -= 1
            continue
        values += 1
        depth += mark != b","
        if depth > MAX_DEPTH:
            raise _refused(f"The body nests deeper than {MAX_DEPTH} levels; flatten it")
        if values > MAX_VALUES:
            raise _refused(f"The body holds more than {MAX_VALUES} values; send several requests")


def _marks(body: bytes) -> Iterator[bytes]:
    """The commas and brackets outside strings, up to where the body stops to be JSON."""
    for found in _MARK.finditer(_without_escapes(body) if b"\\" in body else body):
        mark = found[1]
        if mark in (b"", b'"'):
            return
        yield mark


def _without_escapes(body: bytes) -> bytes:
    """A backslash is legal inside strings alone; without escapes, every quote begins or ends a string.

    In blocks, between which other threads get their turn; none ends within an escape.
    """
    plain = []
    start = 0
    while start < len(body):
        run = _BACKSLASHES.match(body, start + BLOCK - 1)
        end = run.end() + 1 if run else len(body)
        plain.append(body[start:end].replace(b"\\\\", b"").replace(b'\\"', b""))
        start = end
    return b"".join(plain)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise _refused(f"An object of the body has {len(pairs)} keys; at most {MAX_KEYS} are taken")
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _refused(f"The key {twice[:64]!r} occurs twice in one object; send it once")
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _refused(f"The body holds an integer of {len(digits)} digits; 64 bits are the most")
    return int(digits)


def _constant(name: str) -> Any:
    raise _refused(f"The body holds {name}, which is not JSON; send a finite number")


def _refused(message: str) -> RequestRefused:
    return RequestRefused(400, message, code="invalid_json")
