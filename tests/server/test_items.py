"""What goes into `POST /v1/responses`: items become a conversation, and what does not fit is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import httpx2
import pytest

from server.schemas.items import MAX_ITEMS
from tests.server.byte_tokenizer import ASSISTANT, SYSTEM, USER
from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine
from tests.server.responding import CLOCK, WEATHER, answered, post

CALL = {"type": "function_call", "call_id": "1", "name": "clock", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "1", "output": "21"}

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _roomy(engine: FakeEngine) -> None:
    """The functions are told of in more bytes than the fake's context has."""
    engine.model = dataclasses.replace(engine.model, max_context=8192)


async def test_items_become_a_conversation(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    items = [
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": t} for t in "ab"]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x", "status": None},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "phase": None,
         "content": [{"type": "output_text", "text": "c", "annotations": [], "logprobs": None}]},
        {"role": "user", "content": "e"},
    ]  # fmt: skip
    reply = await post(client, input=items, instructions="i")
    expected = (SYSTEM, *b"i", SYSTEM, *b"d", USER, *b"ab", ASSISTANT, *b"c", USER, *b"e", ASSISTANT)
    assert engine.requests[0].prompt_ids == expected
    assert reply.headers["x-brainstacks-ignored"] == (
        "input.content.annotations, input.encrypted_content, input.id, input.status, input.summary"
    )


async def test_calls_and_results_are_told_as_in_chat(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    call = {"type": "function_call", "name": "weather", "arguments": '{"city": "Köln"}'}
    result = {"type": "function_call_output", "output": "rain"}
    items = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Let me see."},
        {**call, "call_id": "1", "id": "fc_1", "status": "completed"},
        {**call, "call_id": "2"},
        {**result, "call_id": "1"},
        {**result, "call_id": "2", "output": [{"type": "input_text", "text": "sun"}]},
    ]
    await answered(client, input=items, tools=[WEATHER, CLOCK])
    calls = [
        {"id": i, "type": "function", "function": {k: call[k] for k in ("name", "arguments")}} for i in "12"
    ]
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
        {"role": "tool", "tool_call_id": "2", "content": "sun"},
    ]
    tools = [
        {"type": "function", "function": {k: v for k, v in one.items() if k != "type"}}
        for one in (WEATHER, CLOCK)
    ]
    chat = {"model": "tiny", "messages": messages, "tools": tools}
    assert (await client.post("/v1/chat/completions", json=chat)).status_code == 200
    ours, theirs = (one.prompt_ids for one in engine.requests)
    assert ours == theirs


async def test_what_cannot_be_had_is_refused_by_name_and_all_at_once(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    wrong: dict[str, Any] = {
        "previous_response_id": "resp_1",
        "conversation": {"id": "conv_1"},
        "background": True,
        "store": True,
        "prompt": {"id": "pmpt_1"},
        "truncation": "auto",
        "n": 2,
        "reasoning": {"effort": "high"},
        "tools": [{"type": "web_search", "filters": {}}],
    }
    error = error_of(await post(client, **wrong), 400)
    assert all(name in error["message"] for name in wrong)
    assert "tools.0.type is 'web_search'" in error["message"]
    assert "filters" not in error["message"]
    assert "not stored; leave it out, and send the whole conversation as 'input'" in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["x"]}, "input.0"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "f"}]}, "input.0.arguments"),
        ({"input": [RESULT]}, "input.0.call_id"),
        ({"input": [CALL, CALL]}, "input.1.call_id"),
        ({"input": [CALL, RESULT, RESULT]}, "input.2.call_id"),
        ({"input": [{**CALL, "arguments": "[1]"}]}, "input.0.arguments"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"role": "user", "content": "x"}] * (MAX_ITEMS + 1)}, "input"),
        ({"instructions": ["x"]}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"include": ["file_search_call.results"]}, "include.0"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"tools": [{"type": "function", "function": {"name": "x"}}]}, "tools.0.function"),
        ({"tools": [CLOCK, CLOCK]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tools": [CLOCK], "text": {"format": {"type": "json_object"}}}, "tools"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_object", "schema": {}}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}},
         "structured_outputs"),
        ({"input": "x" * 9000}, "input"),
        ({"model": "gpt"}, "model"),
    ],
)  # fmt: skip
async def test_what_does_not_fit_is_refused_by_its_field(
    client: httpx2.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    error = error_of(await post(client, **fields), 404 if param == "model" else 400)
    assert error["param"] == param, error
    assert engine.requests == []


async def test_as_many_items_as_are_taken_become_a_conversation_with_instructions(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    items = [{"role": "user", "content": ""}] * MAX_ITEMS
    await answered(client, input=items, instructions="s")
    assert engine.requests[0].prompt_ids.count(USER) == MAX_ITEMS
