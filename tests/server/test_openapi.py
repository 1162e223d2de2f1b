"""The OpenAPI document is true: what routes answer, over the fake engine, is what it says."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import httpx2
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase
from hypothesis import settings as drawn
from pydantic import SecretStr
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi import checks

from brainstacks import errors
from brainstacks.engine.facts import Readiness
from server.app import create_app
from server.errors import STATUS
from server.settings import Settings
from tests.server.conftest import ADMIN
from tests.server.documented import ADD, CALL, CHAT, IDS, ITEMS, PROMPT, TOOL, check, read_document, send
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


PUBLISHING = (
    errors.InvalidArtifact,
    errors.ArtifactTooLarge,
    errors.IncompatibleArtifact,
    errors.StaleGeneration,
    errors.StorageFull,
    errors.StorageUnwritable,
)
"""What a publication may raise, and a generation does not."""

ANSWERED: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
    ("POST", "/v1/completions", 200, PROMPT),
    ("POST", "/v1/completions", 200, {**PROMPT, "prompt": ["a", "b"], "n": 2, "best_of": 3, **IDS}),
    ("POST", "/v1/completions", 200, {**PROMPT, "echo": True, "logprobs": 2, "prompt_logprobs": 1}),
    ("POST", "/v1/chat/completions", 200, CHAT),
    ("POST", "/v1/chat/completions", 200, {**CHAT, "logprobs": True, "top_logprobs": 2, **IDS}),
    ("POST", "/v1/chat/completions", 200, {**CHAT, "prompt_logprobs": 1, "user": "me"}),
    ("POST", "/v1/chat/completions", 200, {**CHAT, "tools": [TOOL]}),
    ("POST", "/v1/responses", 200, ITEMS),
    ("POST", "/v1/responses", 200, {**ITEMS, "top_logprobs": 2, "tools": [ADD], "tool_choice": "none"}),
    ("POST", "/v1/route", 200, {"prompt": "hi"}),
    ("POST", "/v1/route", 200, {"prompt": "hi", "model": "tiny:base"}),
    ("GET", "/v1/routing/first", 200, {}),
    ("POST", "/v1/attribution", 200, {"prompt": "hi", "completion": "ho"}),
    ("GET", "/v1/models", 200, {}),
    ("GET", "/v1/models/tiny:math", 200, {}),
    ("POST", "/tokenize", 200, {"prompt": "hi"}),
    ("POST", "/tokenize", 200, {"messages": CHAT["messages"], "return_token_strs": True}),
    ("POST", "/detokenize", 200, {"tokens": [104, 105]}),
    ("GET", "/tokenizer_info", 200, {}),
    ("GET", "/admin/stacks", 200, {}),
    ("GET", "/admin/stacks/chat", 200, {}),
    ("POST", "/admin/stacks/chat/activate", 200, {"version": 1}),
    ("POST", "/admin/stacks/chat/load", 200, {}),
    ("POST", "/admin/stacks/chat/pin", 200, {}),
    ("POST", "/admin/stacks/chat/unpin", 200, {}),
    ("POST", "/admin/stacks/chat/evict", 200, {}),
    ("GET", "/admin/router", 200, {}),
    ("POST", "/admin/router/activate", 200, {"version": 1}),
    ("GET", "/admin/registry", 200, {}),
    ("POST", "/admin/registry/reload", 200, {}),
    ("GET", "/admin/requests", 200, {}),
    ("GET", "/health", 200, {}),
    ("GET", "/ping", 200, {}),
    ("POST", "/ping", 200, {}),
    ("GET", "/ready", 200, {}),
    ("GET", "/metrics", 200, {}),
    ("GET", "/version", 200, {}),
    ("PUT", "/admin/stacks/law", 201, {}),
    ("PUT", "/admin/stacks/law", 200, {}),
    ("PUT", "/admin/router", 201, {}),
    ("PUT", "/admin/router", 200, {}),
    ("GET", "/admin/stacks/law/versions/1/file", 200, {}),
    ("GET", "/admin/router/versions/1/file", 200, {}),
    ("DELETE", "/admin/stacks/law", 200, {}),
)
"""(method, path, status, JSON body): in this order, at least one for every route and status below 300."""


@pytest.fixture(scope="module")
def document() -> BaseSchema:
    return read_document()


async def test_every_route_and_good_status_is_answered_as_the_document_says(
    client: httpx2.AsyncClient, document: BaseSchema
) -> None:
    seen = set()
    for method, path, status, body in ANSWERED:
        reply = await send(client, method, path, body)
        assert reply.status_code == status, (method, path, reply.text)
        seen.add((method, check(document, reply), str(status)))
    said = {
        (method.upper(), path, status)
        for path, methods in document.raw_schema["paths"].items()
        for method, operation in methods.items()
        for status in operation["responses"]
        if status < "300"
    }
    assert seen == said


async def test_what_answers_a_call_of_a_function_is_as_the_document_says(
    client: httpx2.AsyncClient, engine: FakeEngine, document: BaseSchema
) -> None:
    engine.reply = CALL
    engine.model = dataclasses.replace(
        engine.model, max_context=8192
    )  # the function is told of in many bytes
    reply = await send(client, "POST", "/v1/chat/completions", {**CHAT, "tools": [TOOL]})
    assert reply.json()["choices"][0]["finish_reason"] == "tool_calls"
    check(document, reply)


@pytest.mark.parametrize(
    "error", [cls("It failed; try again") for cls in STATUS], ids=lambda one: type(one).__name__
)
async def test_every_error_of_the_engine_is_answered_as_the_document_says(
    client: httpx2.AsyncClient, engine: FakeEngine, document: BaseSchema, error: errors.BrainstacksError
) -> None:
    """Those that a generation may raise and those that a publication may."""
    engine.refuse = engine.refuse_publish = error
    publication = isinstance(error, PUBLISHING)
    path = "/admin/stacks/law" if publication else "/v1/completions"
    reply = await send(client, "PUT" if publication else "POST", path, PROMPT)
    assert reply.status_code >= 400
    check(document, reply)


@pytest.mark.parametrize(
    ("method", "path", "status", "headers"),
    [
        ("GET", "/health?x=1", 400, {}),
        ("POST", "/v1/completions", 400, {}),
        ("GET", "/admin/stacks", 401, {"authorization": "Bearer wrong"}),
        ("GET", "/metrics", 403, {"host": "evil.example"}),
        ("GET", "/v1/models/nobody", 404, {}),
        ("GET", "/v1/routing/nobody", 404, {}),
        ("GET", "/admin/stacks/nobody", 404, {}),
        ("DELETE", "/admin/stacks/chat", 412, {"if-match": "1"}),
        ("GET", "/version", 413, {"content-length": "99999999"}),
        ("POST", "/tokenize", 415, {"content-encoding": "gzip"}),
        ("GET", "/ready", 431, {"x-long": "a" * 40_000}),
    ],
)
async def test_every_refusal_before_the_engine_is_answered_as_the_document_says(
    client: httpx2.AsyncClient,
    document: BaseSchema,
    method: str,
    path: str,
    status: int,
    headers: dict[str, str],
) -> None:
    reply = await client.request(method, path, headers=ADMIN | headers)
    assert reply.status_code == status, reply.text
    check(document, reply)


async def test_a_server_that_is_stuck_or_not_ready_answers_as_the_document_says(
    client: httpx2.AsyncClient, engine: FakeEngine, document: BaseSchema
) -> None:
    engine.ready, engine.silence = Readiness(False, ("no router",)), 1000.0
    for path in ("/health", "/ping", "/ready"):
        reply = await client.get(path)
        assert reply.status_code == 503
        check(document, reply)


def test_each_area_has_its_key_and_a_server_without_api_keys_asks_for_none() -> None:
    without = create_app(FakeEngine(), Settings()).openapi()["paths"]
    with_keys = create_app(FakeEngine(), Settings(api_key=(SecretStr("one"),), metrics="admin")).openapi()[
        "paths"
    ]
    assert with_keys["/v1/models"]["get"]["security"] == [{"apiKey": []}]
    assert without["/v1/models"]["get"]["security"] == [{"apiKey": []}, {}]
    assert without["/admin/stacks"]["get"]["security"] == [{"adminKey": []}]
    assert with_keys["/metrics"]["get"]["security"] == [{"adminKey": []}]
    assert "security" not in without["/metrics"]["get"]
    assert "security" not in with_keys["/health"]["get"]
    assert "401" in with_keys["/v1/models"]["get"]["responses"]
    assert "401" not in without["/v1/models"]["get"]["responses"]


def test_bodies_say_their_bounds_and_that_a_null_is_the_default(app: FastAPI) -> None:
    schemas = app.openapi()["components"]["schemas"]
    assert schemas["CompletionRequest"]["properties"]["n"]["anyOf"] == [
        {"type": "integer", "minimum": 1, "maximum": 128},
        {"type": "null"},
    ]
    assert {"type": "null"} in schemas["RoutingField"]["properties"]["mode"]["anyOf"]
    variables = schemas["ChatRequest"]["properties"]["chat_template_kwargs"]["anyOf"][0]
    assert variables["additionalProperties"] is False
    upload = app.openapi()["paths"]["/admin/router"]["put"]["requestBody"]
    assert list(upload["content"]) == ["application/octet-stream"]
    assert not re.search(r'"(ge|le|gt|lt)":', json.dumps(schemas))


SETTINGS = Settings(admin_key=SecretStr("admin-secret"), allowed_host=("*",))
DRAWN = schemathesis.openapi.from_asgi("/openapi.json", create_app(FakeEngine(), SETTINGS))
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.negative_data_rejection,
]


@DRAWN.parametrize()
@drawn(max_examples=10, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
def test_requests_drawn_from_the_document_are_answered_as_it_says(case: schemathesis.Case[Any]) -> None:
    """The short form of `python -m tests.soak schema`."""
    case.call_and_validate(headers=ADMIN, checks=CHECKS)
