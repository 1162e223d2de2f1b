"""From an error to a reply: one table, one shape.

Every error of the HTTP surface is `{"error": {"message", "type", "param", "code"}}`, as OpenAI has it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from brainstacks import errors
from server.offences import in_one, offences

logger = logging.getLogger("brainstacks.server")

CLIENT_GONE = 499
"""nginx's status for a client that left before its answer."""

INVALID = "invalid_request_error"
SERVER = "server_error"

STATUS: Mapping[type[errors.BrainstacksError], tuple[int, str]] = {
    errors.BrainstacksError: (500, SERVER),
    errors.ConfigError: (500, SERVER),
    errors.UnsupportedModel: (500, SERVER),
    errors.InvalidRequest: (400, INVALID),
    errors.NotFound: (404, INVALID),
    errors.InvalidArtifact: (400, INVALID),
    errors.ArtifactTooLarge: (413, INVALID),
    errors.IncompatibleArtifact: (409, INVALID),
    errors.Conflict: (409, "conflict_error"),
    errors.StaleGeneration: (412, "conflict_error"),
    errors.StorageFull: (507, SERVER),
    errors.StorageUnwritable: (503, SERVER),
    errors.CorruptBlob: (503, SERVER),
    errors.RetryLater: (503, SERVER),
    errors.Overloaded: (429, "rate_limit_error"),
    errors.Unavailable: (503, SERVER),
    errors.EngineFailure: (500, SERVER),
}
"""Class -> (HTTP status, `type`); a class that is not here takes its nearest ancestor's row."""

_CODES = {404: "not_found", 405: "method_not_allowed", 400: "invalid_request"}


class RequestRefused(HTTPException):
    """A rule of HTTP itself was broken, before any engine was asked.

    Args:
        status: 400, 401, 403, 408, 413, 415, 429 or 431.
        message: the value, the rule and the way out.
        code: a short machine-readable name.
        param: the field at fault, if one is.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail=message, headers=headers)
        self.code = code
        self.param = param


def status_of(error: errors.BrainstacksError) -> tuple[int, str]:
    """The table's row for `error`: (HTTP status, type)."""
    for cls in type(error).__mro__:
        if cls in STATUS:
            return STATUS[cls]
    raise TypeError(f"{type(error).__name__} has no row in STATUS")


def error_body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def body_of(error: Exception, request_id: str) -> dict[str, Any]:
    """The error object of any exception; what is not ours shows nothing of its inside."""
    if isinstance(error, errors.BrainstacksError):
        return error_body(error.message, status_of(error)[1], error.param, error.code)
    logger.error("request %s failed", request_id, exc_info=error, extra={"request_id": request_id})
    message = f"Internal error; the server's log has the details under request id {request_id}"
    return error_body(message, SERVER, None, "internal_error")


def reply(scope: Scope, error: Exception) -> JSONResponse:
    """The whole reply to `error`; notes its code in `scope` for the metrics."""
    state = scope.setdefault("state", {})
    headers: dict[str, str] = {}
    if isinstance(error, RequestRefused):
        status = error.status_code
        body = error_body(error.detail, _type_of(status), error.param, error.code)
        headers.update(error.headers or {})
    elif isinstance(error, HTTPException):
        status = error.status_code
        body = error_body(_detail(error, scope), _type_of(status), None, _CODES.get(status, "http_error"))
        headers.update(error.headers or {})
        if "GET" in headers.get("Allow", "").split(", ") and "HEAD" not in headers["Allow"]:
            headers["Allow"] += ", HEAD"  # see `spelling`
    elif isinstance(error, RequestValidationError):
        status = 400
        wrong = in_one(offences(error.errors()))
        body = error_body(wrong.message, INVALID, wrong.param, wrong.code)
    else:
        status = status_of(error)[0] if isinstance(error, errors.BrainstacksError) else 500
        body = body_of(error, state.get("request_id", "unknown"))
    if isinstance(error, errors.RetryLater):
        headers["Retry-After"] = str(error.retry_after)
    state["error_code"] = body["error"]["code"]
    return JSONResponse(body, status_code=status, headers=headers)


def install(app: FastAPI) -> None:
    """Register one handler for all that can be raised under `app`."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return reply(request.scope, error)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)  # for the log; nobody reads it

    app.add_exception_handler(ClientDisconnect, gone)
    for cls in (errors.BrainstacksError, HTTPException, RequestValidationError):
        app.add_exception_handler(cls, handle)


def _type_of(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    if status == 403:
        return "permission_error"
    return INVALID if status < 500 else SERVER


def _detail(error: HTTPException, scope: Scope) -> str:
    path = str(scope.get("path", ""))[:200]
    if error.status_code == 404:
        return f"There is no route {scope['method']} {path}; see /docs for those there are"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"{path} does not take {scope['method']}; use {allowed}"
    return str(error.detail)
