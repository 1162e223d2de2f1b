"""Functions that a model may call: it is told of them, held to a call if one is asked for, and understood."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import httpx2
import openai
import pytest
from fastapi import FastAPI

from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock", "description": "The time."}}
HI: list[Any] = [{"role": "user", "content": "hi"}]
ARGUMENTS = {"city": "Köln"}
CALL = json.dumps({"name": "weather", "arguments": ARGUMENTS}, ensure_ascii=False)
NOW = '{"name": "clock", "arguments": {}}'


def called(arguments: str, name: str = "weather", call_id: str = "one") -> dict[str, Any]:
    """An assistant's message that makes one call."""
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }


CALLED = called("{}")
RESULT = {"role": "tool", "tool_call_id": "one", "content": "x"}


@pytest.fixture(autouse=True)
def _roomy(engine: FakeEngine) -> None:
    """The functions are told of in more bytes than the fake's context has."""
    engine.model = dataclasses.replace(engine.model, max_context=8192)
    engine.reply = CALL


async def ask(client: httpx2.AsyncClient, **fields: Any) -> httpx2.Response:
    body = {"model": "tiny", "messages": HI, "tools": [WEATHER, CLOCK], **fields}
    return await client.post("/v1/chat/completions", json=body)


async def test_an_answer_that_is_a_call_is_told_as_one(client: httpx2.AsyncClient) -> None:
    (choice,) = (await ask(client)).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == ARGUMENTS
    assert len(call["id"]) == 9


@pytest.mark.parametrize(
    "text",
    [
        "Hello",
        "{not JSON",
        '{"name": "other", "arguments": {}}',
        '{"name": "weather"}',
        "[]",
        f"Well: {CALL}",
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_other_answer_is_a_text(
    client: httpx2.AsyncClient, engine: FakeEngine, text: str, stream: bool
) -> None:
    engine.reply = text
    reply = await ask(client, stream=stream)
    if stream:
        chunks = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
        deltas = [choice for chunk in chunks for choice in chunk["choices"]]
        assert "".join(choice["delta"].get("content") or "" for choice in deltas) == text
        assert not any("tool_calls" in choice["delta"] for choice in deltas)
        assert deltas[-1]["finish_reason"] == "stop"
    else:
        (choice,) = reply.json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")


async def test_the_model_is_told_of_the_functions_in_a_system_text(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    await ask(client)
    await ask(client, messages=[{"role": "system", "content": "Be brief."}, *HI])
    for request in engine.requests:
        told = engine.tokenizer.decode(request.prompt_ids)
        assert told.count("<system>") == 1
        assert '"name": "weather"' in told
        assert '"description": "The time."' in told
    assert "Be brief.\n\nYou can call" in engine.tokenizer.decode(engine.requests[1].prompt_ids)


@pytest.mark.parametrize(
    ("fields", "names", "several"),
    [
        ({"tool_choice": "required"}, ["weather", "clock"], True),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ["weather", "clock"], False),
        ({"tool_choice": {"type": "function", "function": {"name": "clock"}}}, ["clock"], False),
        ({"parallel_tool_calls": False}, ["weather", "clock"], False),
        ({"tool_choice": "auto"}, None, True),
        ({}, None, True),
        ({"tool_choice": "none"}, None, True),
    ],
)
async def test_an_answer_is_held_to_the_calls_that_are_asked_for(
    client: httpx2.AsyncClient,
    engine: FakeEngine,
    fields: dict[str, Any],
    names: list[str] | None,
    several: bool,
) -> None:
    assert (await ask(client, **fields)).status_code == 200
    grammar = engine.requests[0].sampling.grammar
    if names is None:
        assert grammar is None
        return
    assert grammar is not None
    assert re.findall(r'\\"name\\": \\"(\w+)\\"', grammar.text) == names
    assert ("call){0,15}" in grammar.text) is several


async def test_with_none_the_model_is_told_of_nothing_and_calls_nothing(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    nothing: list[dict[str, Any]] = [{"tool_choice": "none"}, {"tools": []}]
    for fields in nothing:
        (choice,) = (await ask(client, **fields)).json()["choices"]
        assert choice["message"]["content"] == CALL
    assert {request.prompt_ids for request in engine.requests} == {(257, *b"hi", 258)}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "code"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tool_choice": "some"}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "tools"),
        ({"messages": [*HI, {"role": "tool", "content": "x"}]}, "messages.1.tool_call_id"),
        ({"messages": [*HI, RESULT]}, "messages.1.tool_call_id"),
        ({"messages": [*HI, RESULT, CALLED]}, "messages.1.tool_call_id"),
        ({"messages": [*HI, CALLED, RESULT, RESULT]}, "messages.3.tool_call_id"),
        ({"messages": [*HI, CALLED, RESULT, CALLED]}, "messages.3.tool_calls.0.id"),
        ({"messages": [*HI, called("no JSON")]}, "messages.1.tool_calls.0.function.arguments"),
        ({"messages": [*HI, called("[1]")]}, "messages.1.tool_calls.0.function.arguments"),
        ({"messages": [*HI, called('{"a": NaN}')]}, "messages.1.tool_calls.0.function.arguments"),
        ({"messages": [*HI, called('{"a": "\\ud800"}')]}, "messages.1.tool_calls.0.function.arguments"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "y"}]}, "messages.0.tool_call_id"),
    ],
)
async def test_what_does_not_fit_is_refused_by_its_field(
    client: httpx2.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    error = error_of(await ask(client, **fields), 400)
    assert error["param"] == param, error


async def test_an_error_about_a_result_names_its_id_and_the_rule(client: httpx2.AsyncClient) -> None:
    error = error_of(await ask(client, messages=[*HI, CALLED, {**RESULT, "tool_call_id": "two"}]), 400)
    assert error["message"] == "messages.2.tool_call_id is 'two': no call before it has this id"


async def test_an_answer_of_several_calls_is_told_as_them(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    engine.reply = f"{CALL}\n{NOW}"
    (choice,) = (await ask(client)).json()["choices"]
    calls = choice["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["weather", "clock"]
    assert len({call["id"] for call in calls}) == 2
    assert choice["message"]["content"] is None


async def test_each_choice_makes_calls_of_its_own(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    engine.reply = NOW  # the second choice has an exclamation mark behind it, and so is a text
    first, second = (await ask(client, n=2)).json()["choices"]
    assert (first["finish_reason"], second["finish_reason"]) == ("tool_calls", "stop")
    assert second["message"]["content"] == f"{NOW}!"


async def test_an_answer_that_is_cut_short_says_so(client: httpx2.AsyncClient) -> None:
    (choice,) = (await ask(client, max_tokens=len(CALL.encode()))).json()["choices"]
    assert choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "length"
    (choice,) = (await ask(client, max_tokens=20)).json()["choices"]
    assert choice["message"]["content"] == CALL[:20]


async def test_results_of_several_calls_come_from_the_user_in_one_message(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    made = called("{}")
    made["tool_calls"] += called("", "clock", "two")["tool_calls"]
    results = [{**RESULT, "tool_call_id": "two", "content": "noon"}, RESULT]
    await ask(client, messages=[*HI, made, *results])
    told = engine.tokenizer.decode(engine.requests[-1].prompt_ids)
    assert told.endswith("<user>Result of clock: noon\nResult of weather: x<assistant>")
    assert '<assistant>{"name": "weather", "arguments": {}}\n{"name": "clock", "arguments": {}}<user>' in told


async def test_a_round_trip_with_the_stock_client_streamed_and_whole(
    app: FastAPI, engine: FakeEngine
) -> None:
    http = openai.DefaultAsyncHttpxClient(transport=httpx2.ASGITransport(app=app))
    async with openai.AsyncOpenAI(api_key="x", base_url="http://localhost/v1", http_client=http) as client:
        asked: Any = {"model": "tiny", "tools": [WEATHER]}
        first = await client.chat.completions.create(messages=HI, **asked)
        message = first.choices[0].message
        assert message.tool_calls
        result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
        engine.reply = "It rains."
        second = await client.chat.completions.create(messages=[*HI, message, result], **asked)
        assert second.choices[0].message.content == "It rains."
        told = engine.tokenizer.decode(engine.requests[-1].prompt_ids)
        assert f"<assistant>{CALL}" in told
        assert "<user>Result of weather: rain" in told
        engine.reply = CALL
        parts = [
            part async for part in await client.chat.completions.create(messages=HI, stream=True, **asked)
        ]
    calls = [call for part in parts for choice in part.choices for call in choice.delta.tool_calls or ()]
    assert [(call.index, call.function and call.function.name) for call in calls] == [(0, "weather")]
    assert parts[-1].choices[0].finish_reason == "tool_calls"


async def test_a_function_may_have_the_name_of_a_choice(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("auto", "required", "none")]
    for name in ("auto", "required", "none"):
        choice = {"type": "function", "function": {"name": name}}
        asked = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "tools": tools}
        await client.post("/v1/chat/completions", json={**asked, "tool_choice": choice})
        grammar = engine.requests[-1].sampling.grammar
        assert grammar is not None
        assert "start: TEXT" not in grammar.text
        assert re.findall(r'^call_\d+: .*?\\"name\\": \\"(\w+)', grammar.text, re.MULTILINE) == [name]
