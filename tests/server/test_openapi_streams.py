"""Every event of a stream is what the OpenAPI document says."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from schemathesis.openapi.checks import JsonSchemaError
from schemathesis.schemas import BaseSchema

from brainstacks import errors
from server.replies import ChatChunk, CompletionChunk, ErrorReply, ResponseEvent
from tests.server.completing import chunks_of
from tests.server.documented import ADD, CALL, CHAT, ITEMS, PROMPT, TOOL, check, read_document, send
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def document() -> BaseSchema:
    return read_document()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2, "logprobs": 2, "echo": True, "return_token_ids": True},
        {"prompt": ["a", "b"], "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ],
)
async def test_every_event_of_a_completion_is_a_chunk_as_the_document_says(
    client: httpx2.AsyncClient, document: BaseSchema, fields: dict[str, Any]
) -> None:
    reply = await send(client, "POST", "/v1/completions", {**PROMPT, "stream": True, **fields})
    check(document, reply)
    assert [CompletionChunk.model_validate(chunk) for chunk in chunks_of(reply.text)]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2, "logprobs": True, "top_logprobs": 2, "return_token_ids": True},
        {"tools": [TOOL], "stream_options": {"include_usage": True}},
    ],
)
async def test_every_event_of_a_chat_is_a_chunk_as_the_document_says(
    client: httpx2.AsyncClient, engine: FakeEngine, document: BaseSchema, fields: dict[str, Any]
) -> None:
    engine.reply = CALL
    reply = await send(client, "POST", "/v1/chat/completions", {**CHAT, "stream": True, **fields})
    check(document, reply)
    assert [ChatChunk.model_validate(chunk) for chunk in chunks_of(reply.text)]


@pytest.mark.parametrize("said", ["a text", CALL])
@pytest.mark.parametrize("broken", [False, True])
async def test_every_event_of_a_response_is_as_the_document_says(
    client: httpx2.AsyncClient, engine: FakeEngine, document: BaseSchema, said: str, broken: bool
) -> None:
    engine.reply = said
    engine.model = dataclasses.replace(engine.model, max_context=8192)  # to tell of the function
    if broken:
        engine.fail_after = (2, errors.EngineFailure("A step failed; try again"))
    asked = {**ITEMS, "stream": True, "top_logprobs": 1, "tools": [ADD]}
    reply = await send(client, "POST", "/v1/responses", asked)
    check(document, reply)
    lines = [line for line in reply.text.splitlines(keepends=True) if not line.startswith("event: ")]
    *_, last = [ResponseEvent.model_validate(event) for event in chunks_of("".join(lines))]
    assert last.type == ("error" if broken else "response.completed")


async def test_a_stream_that_breaks_ends_in_an_error_as_the_document_says(
    client: httpx2.AsyncClient, engine: FakeEngine, document: BaseSchema
) -> None:
    engine.fail_after = (2, errors.EngineFailure("A step failed; try again"))
    reply = await send(client, "POST", "/v1/completions", {**PROMPT, "stream": True})
    check(document, reply)
    *chunks, failure = chunks_of(reply.text)
    assert [CompletionChunk.model_validate(chunk) for chunk in chunks]
    ErrorReply.model_validate(failure)


async def test_an_event_that_is_no_chunk_would_not_pass(document: BaseSchema) -> None:
    request = httpx2.Request("POST", "http://localhost/v1/completions")
    headers = {"content-type": "text/event-stream", "x-request-id": "1", "x-brainstacks-routing": "base"}
    reply = httpx2.Response(200, headers=headers, content=b'data: {"id": 5}\n\n', request=request)
    reply.elapsed = timedelta(0)  # of a reply that nobody waited for
    with pytest.raises(JsonSchemaError, match="SSE event violates schema"):
        check(document, reply)
