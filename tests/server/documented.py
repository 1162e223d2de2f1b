"""Replies held to the OpenAPI document, and requests that give one of every kind."""

from __future__ import annotations

import re
from typing import Any

import httpx2
import schemathesis
from pydantic import SecretStr
from schemathesis.schemas import BaseSchema

from server.app import create_app
from server.settings import Settings
from tests.server.conftest import ADMIN
from tests.server.fake_engine import FakeEngine

PROMPT: dict[str, Any] = {"model": "tiny", "prompt": "hi"}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
ITEMS: dict[str, Any] = {"model": "tiny", "input": "hi"}
ADD = {"type": "function", "name": "add", "parameters": {"type": "object"}}
CALL = '{"name": "add", "arguments": {"a": 1}}'
IDS = {"return_token_ids": True}


def read_document() -> BaseSchema:
    app = create_app(FakeEngine(), Settings(admin_key=SecretStr("admin-secret")))
    return schemathesis.openapi.from_dict(app.openapi())


async def send(client: httpx2.AsyncClient, method: str, path: str, body: dict[str, Any]) -> httpx2.Response:
    what: dict[str, Any] = {"content": b"a file"} if method == "PUT" else {"json": body} if body else {}
    return await client.request(method, path, headers=ADMIN | {"x-request-id": "first"}, **what)


def check(document: BaseSchema, reply: httpx2.Response) -> str:
    """Holds `reply` to what the document says of its route; that route's path."""
    method, path = reply.request.method, reply.request.url.path
    (template,) = [one for one in document if re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", one), path)]
    operation = document[template][method]
    responses = operation.definition.raw["responses"]
    assert str(reply.status_code) in responses, f"{method} {template} does not say {reply.status_code}"
    operation.validate_response(reply)
    said = responses[str(reply.status_code)]
    assert reply.headers["content-type"].partition(";")[0] in said["content"]
    known = document.raw_schema["components"]["headers"]
    always = {name for name in said["headers"] if known[name]["required"]}
    assert always <= known.keys() & reply.headers.keys() <= said["headers"].keys(), (template, reply.headers)
    return str(template)
