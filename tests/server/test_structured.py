"""Structured output by HTTP: what fields mean, what is refused, and a real engine behind the real client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import httpx2
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from brainstacks.engine.request import Grammar
from server.app import create_app
from server.settings import Settings
from tests.engine.async_driving import Running
from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


async def post(client: httpx2.AsyncClient, path: str, **fields: Any) -> httpx2.Response:
    asked = {"messages": HI} if path == "chat/completions" else {"prompt": "hi"}
    return await client.post(f"/v1/{path}", json={"model": "tiny", **asked, **fields})


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": None, "structured_outputs": None}, None),
        ({"response_format": {"type": "json_object"}}, Grammar("json", '{"type": "object"}')),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            Grammar("json", json.dumps(SCHEMA)),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True}}},
            Grammar("json", '{"type": "object"}'),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, Grammar("json", json.dumps(SCHEMA))),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, Grammar("json", json.dumps(SCHEMA))),
        ({"structured_outputs": {"regex": "a+", "json": None}}, Grammar("regex", "a+")),
        ({"structured_outputs": {"choice": ["a", "é"]}}, Grammar("choice", '["a", "é"]')),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, Grammar("grammar", 'start: "a"')),
    ],
)  # fmt: skip
async def test_fields_become_one_grammar(
    client: httpx2.AsyncClient,
    engine: FakeEngine,
    path: str,
    fields: dict[str, Any],
    expected: Grammar | None,
) -> None:
    reply = await post(client, path, **fields)
    assert reply.status_code == 200, reply.text
    assert engine.requests[0].sampling.grammar == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "text", "json_schema": {"name": "x"}}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
        ),
        ({"structured_outputs": {}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": [1]}}, "structured_outputs.json"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "a" * 70_000}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json_object": True}}, "structured_outputs.json_object"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
        ),
    ],
)
async def test_what_does_not_fit_is_refused_by_its_field(
    client: httpx2.AsyncClient, fields: dict[str, Any], param: str | None
) -> None:
    assert error_of(await post(client, "completions", **fields), 400)["param"] == param


# --- a real engine -------------------------------------------------------------------------------


@pytest.fixture
async def real(tmp_path: Path, settings: Settings) -> AsyncIterator[httpx2.ASGITransport]:
    running = Running(tmp_path)
    yield httpx2.ASGITransport(app=create_app(running.engine, settings))
    await running.engine.close()


@pytest.fixture
async def stock(real: httpx2.ASGITransport) -> AsyncIterator[openai.AsyncOpenAI]:
    http = openai.DefaultAsyncHttpxClient(transport=real)
    async with openai.AsyncOpenAI(api_key="x", base_url="http://localhost/v1", http_client=http) as client:
        yield client


class Pet(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["cat", "dog"]
    age: int = Field(ge=0, le=30)


async def test_the_client_parses_an_answer_into_its_own_model(stock: openai.AsyncOpenAI) -> None:
    answer = await stock.chat.completions.parse(
        model="base", messages=[{"role": "user", "content": "hi"}], response_format=Pet, max_tokens=200
    )
    assert isinstance(answer.choices[0].message.parsed, Pet)
    assert answer.choices[0].finish_reason == "stop"


async def test_a_stream_says_the_same_text(stock: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "base",
        "prompt": "hi",
        "max_tokens": 100,
        "seed": 5,
        "extra_body": {"structured_outputs": {"regex": "[a-c]{5,9}-[x-z]{4}"}},
    }
    whole = (await stock.completions.create(**asked)).choices[0]
    chunks = [chunk.choices[0] async for chunk in await stock.completions.create(stream=True, **asked)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert (
        [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == [whole.finish_reason] == ["stop"]
    )


async def test_a_schema_that_cannot_be_used_is_refused_with_its_place_before_a_stream_begins(
    real: httpx2.ASGITransport,
) -> None:
    async with httpx2.AsyncClient(transport=real, base_url="http://localhost") as client:
        schema = {"type": "object", "properties": {"a": {"type": "objekt"}}}
        refused = await client.post(
            "/v1/chat/completions",
            json={
                "model": "base",
                "messages": HI,
                "stream": True,
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
            },
        )
        error = error_of(refused, 400)
        assert error["param"] == "response_format.json_schema.schema"
        assert error["message"].endswith("Invalid type: objekt (at /properties/a)")
