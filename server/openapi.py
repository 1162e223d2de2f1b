"""The OpenAPI document: what every route answers, with which headers, and who may ask."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from server.auth import Area, classify
from server.keys import Keys
from server.replies import ChatChunk, CompletionChunk, ErrorReply, Reply, ResponseEvent
from server.settings import Settings

STREAMED: tuple[type[Reply], ...] = (CompletionChunk, ChatChunk, ResponseEvent)
"""Events of streams."""

REFUSALS = (400, 403, 413, 415, 431, 500)
"""What any route may answer, whoever asks."""

ASKED = (404, 409, 429, 503)
"""Further ones of a route that asks the engine: no such model, another version, the queue, draining."""

GENERATION = ("etag",)
ROUTED = ("x-brainstacks-routing", "x-brainstacks-ignored")
LIMITED = tuple(
    f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")
)

_HEADERS: dict[str, tuple[bool, str]] = {
    "x-request-id": (True, "the request's own, or one that was drawn for it; log lines have it"),
    "etag": (True, "the registry's generation, for If-Match"),
    "repr-digest": (True, "the file's sha256 (RFC 9530)"),
    "x-brainstacks-routing": (True, "the mode, then each active domain's weight: `routed;chat=0.850`"),
    "x-brainstacks-ignored": (False, "fields of the request that had no effect"),
    "retry-after": (False, "seconds after which a further try makes sense"),
    "www-authenticate": (True, "Bearer"),
    **dict.fromkeys(LIMITED, (False, "as OpenAI has it; where the key has a limit")),
}
"""Name -> whether it is always there, and what it says."""

# Beside those that a route names.
_HEADERS_OF = {"401": ("www-authenticate",), "429": ("retry-after",), "503": ("retry-after",)}

_REQUEST_ID = {
    "name": "x-request-id",
    "in": "header",
    "required": False,
    "description": "the request's id: 1 to 128 of a-z, A-Z, 0-9, '.', '_', '-'; any other is replaced",
    "schema": {"type": "string"},
}

_SCHEMES = {
    "apiKey": {"type": "http", "scheme": "bearer", "description": "of the inference routes (--api-key)"},
    "adminKey": {"type": "http", "scheme": "bearer", "description": "of /admin (--admin-key)"},
}


def answers(
    model: type[Reply],
    *refusals: int,
    status: int = 200,
    headers: tuple[str, ...] = (),
    stream: type[Reply] | None = None,
) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route.

    Args:
        refusals: statuses of errors beside `REFUSALS` and those of keys and bodies.
        headers: names that a reply of `status` may have.
        stream: of `STREAMED`: its events, where the request asks for a stream.
    """
    given: dict[str, Any] = {"model": model, "headers": _headers(*headers)}
    if stream is not None:
        given["content"] = {"text/event-stream": {"schema": _event(stream)}}
    return {status: given, **{each: _refusal(each) for each in refusals}}


def file_answer(*refusals: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that gives a stored file. Arguments as of `answers`."""
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    given = {"description": "the file", "content": content, "headers": _headers(*GENERATION, "repr-digest")}
    return {200: given, **{each: _refusal(each) for each in refusals}}


class Api(FastAPI):
    """FastAPI whose document also tells what stands in front of the routes."""

    def __init__(self, settings: Settings, keys: Keys, **options: Any) -> None:
        super().__init__(**options)
        self.settings = settings
        self.keys = keys

    def openapi(self) -> dict[str, Any]:
        """Made once; FastAPI keeps it."""
        if self.openapi_schema is None:
            document = super().openapi()
            _add_components(document["components"])
            for path, methods in document["paths"].items():
                for operation in methods.values():
                    self._complete(operation, self._area(path))
        return super().openapi()

    def _area(self, path: str) -> Area:
        area = classify(path, path)[0]
        return self.settings.metrics if area == "metrics" else area

    def _complete(self, operation: dict[str, Any], area: Area) -> None:
        """Add to one operation: its key, the request's id, and the refusals and headers that follow."""
        operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/RequestId"})
        responses = operation["responses"]
        responses.pop("422", None)
        refusals = [*REFUSALS, *([408] if "requestBody" in operation else [])]
        asks_key = area == "admin" or (area == "inference" and self.keys.configured)
        refusals += [401] if asks_key else []
        responses.update({str(status): _refusal(status) for status in refusals})
        if area == "admin":
            operation["security"] = [{"adminKey": []}]
        elif area == "inference":
            operation["security"] = [{"apiKey": []}, *([] if asks_key else [{}])]
        for status, response in responses.items():
            headers = response.setdefault("headers", {})
            headers.update(_headers("x-request-id", *_HEADERS_OF.get(status, ())))
        operation["responses"] = dict(sorted(responses.items()))


def _add_components(components: dict[str, Any]) -> None:
    """What operations refer to and FastAPI does not know of; without its 422, which nothing gives."""
    components["securitySchemes"] = _SCHEMES
    components["parameters"] = {"RequestId": _REQUEST_ID}
    components["headers"] = {
        name: {"description": description, "required": always, "schema": {"type": "string"}}
        for name, (always, description) in _HEADERS.items()
    }
    schemas = components["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    models: tuple[type[Reply], ...] = (*STREAMED, ErrorReply)
    _, document = models_json_schema(
        [(model, "serialization") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas.update(document["$defs"])


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _refusal(status: int) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/ErrorReply"}
    return {
        "description": HTTPStatus(status).phrase,
        "content": {"application/json": {"schema": schema}},
    }


def _event(model: type[Reply]) -> dict[str, Any]:
    """The schema of one server-sent event."""
    told = [{"$ref": f"#/components/schemas/{each.__name__}"} for each in (model, ErrorReply)]
    chunk = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": told}}
    return {
        "type": "object",
        "description": "each event; [DONE] ends the stream",
        "required": ["data"],
        "properties": {"data": {"anyOf": [{"const": "[DONE]"}, chunk]}},
    }
