"""JSON bodies, read strictly: what two parsers could read in two ways is refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from server.errors import RequestRefused

MAX_DEPTH = 32

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(body: bytes) -> Any:
    """The value of `body`: UTF-8, no key twice, no NaN or Infinity, at most `MAX_DEPTH` levels.

    Raises:
        RequestRefused: 400, naming the rule.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(f"The body is not UTF-8 (byte {error.start}); send UTF-8 JSON") from None
    _check_depth(body)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise _refused(f"The body is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:
        raise _refused("The body holds an integer of thousands of digits; 64 bits are the most") from None
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
        return parse_json(await self.body())


class JsonRoute(APIRoute):
    """A route that reads its body through `JsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
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


def _check_depth(body: bytes) -> None:
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", body)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            raise _refused(f"The body nests deeper than {MAX_DEPTH} levels; flatten it")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _refused(f"The key {twice[:64]!r} occurs twice in one object; send it once")
    return value


def _constant(name: str) -> Any:
    raise _refused(f"The body holds {name}, which is not JSON; send a finite number")


def _refused(message: str) -> RequestRefused:
    return RequestRefused(400, message, code="invalid_json")
