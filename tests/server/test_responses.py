"""`POST /v1/responses`: items in, items out, whole and streamed; nothing is stored."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import httpx2
import pytest

from brainstacks.engine.request import CompositionRequest, Grammar
from brainstacks.errors import EngineFailure, InvalidRequest, Overloaded
from tests.server.completing import REPLY
from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine
from tests.server.responding import CLOCK, PARAMETERS, WEATHER, answered, post, streamed

pytestmark = pytest.mark.anyio

CALL = '{"name": "weather", "arguments": {"city": "Köln"}}'
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.fixture(autouse=True)
def _roomy(engine: FakeEngine) -> None:
    """The functions are told of in more bytes than the fake's context has."""
    engine.model = dataclasses.replace(engine.model, max_context=8192)


async def test_an_answer_has_output_items_usage_routing_and_what_was_asked_for(
    client: httpx2.AsyncClient,
) -> None:
    reply = await post(client, temperature=0.5, metadata={"a": "b"}, instructions="s", max_output_tokens=99)
    body = reply.json()
    assert body["id"] == f"resp_{reply.headers['x-request-id']}"
    assert (body["object"], body["status"], body["store"]) == ("response", "completed", False)
    (item,) = body["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": REPLY, "annotations": [], "logprobs": []}]
    assert body["usage"] == {
        "input_tokens": 6,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 13,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 19,
    }
    assert body["routing"]["mode"] == "routed"
    assert reply.headers["x-brainstacks-routing"].startswith("routed;")
    assert reply.headers["x-brainstacks-ignored"] == "metadata"
    asked = {"temperature": 0.5, "top_p": 1.0, "instructions": "s", "max_output_tokens": 99}
    told = {"metadata": {"a": "b"}, "tools": [], "tool_choice": "auto", "truncation": "disabled"}
    assert {**body, **asked, **told} == body
    assert body["text"]["format"] == {"type": "text"}
    assert body["error"] is body["incomplete_details"] is body["previous_response_id"] is None


async def test_fields_mean_what_they_mean_in_chat(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    shared = {"temperature": 0, "top_p": 0.9, "seed": 3, "stop": ["x"], "top_k": 4, "min_p": 0.1}
    routing = {"mode": "fixed", "weights": {"math": 0.9}}
    await answered(client, max_output_tokens=5, routing=routing, priority=2, **shared)
    said = [{"role": "user", "content": "hi"}]
    chat = {"model": "tiny", "messages": said, "max_tokens": 5, "routing": routing, "priority": 2, **shared}
    assert (await client.post("/v1/chat/completions", json=chat)).status_code == 200
    ours, theirs = (dataclasses.replace(one, request_id="") for one in engine.requests)
    assert ours == theirs
    assert ours.composition == CompositionRequest(mode="fixed", weights={"math": 0.9})


async def test_a_stream_tells_every_step_and_ends_with_the_whole(client: httpx2.AsyncClient) -> None:
    events = await streamed(client)
    kinds = [event["type"] for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event["delta"] for event in events[4:-4]) == REPLY
    begun, ended = events[0]["response"], events[-1]["response"]
    assert (begun["status"], begun["output"], begun["usage"]) == ("in_progress", [], None)
    assert begun["routing"] == ended["routing"]
    assert ended["output"] == [events[-2]["item"]]
    whole = await answered(client)
    changing = {"id", "created_at", "completed_at", "routing", "output"}
    assert {k: v for k, v in ended.items() if k not in changing} == {
        k: v for k, v in whole.items() if k not in changing
    }
    assert ended["output"][0]["content"] == whole["output"][0]["content"]


async def test_an_answer_cut_by_max_output_tokens_is_incomplete(client: httpx2.AsyncClient) -> None:
    whole = await answered(client, max_output_tokens=3)
    last = (await streamed(client, max_output_tokens=3))[-1]
    assert last["type"] == "response.incomplete"
    for response in (whole, last["response"]):
        assert (response["status"], response["completed_at"]) == ("incomplete", None)
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["output"][0]["status"] == "incomplete"
        assert response["output"][0]["content"][0]["text"] == REPLY[:3]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_a_call_is_a_function_call_item(
    client: httpx2.AsyncClient, engine: FakeEngine, stream: bool
) -> None:
    engine.reply = CALL
    choice = {"type": "function", "name": "weather"}
    fields: dict[str, Any] = {"tools": [WEATHER, CLOCK], "tool_choice": choice, "parallel_tool_calls": False}
    body = (await streamed(client, **fields))[-1]["response"] if stream else await answered(client, **fields)
    (item,) = body["output"]
    assert (item["type"], item["name"], item["status"]) == ("function_call", "weather", "completed")
    assert json.loads(item["arguments"]) == {"city": "Köln"}
    assert item["id"].startswith("fc_")
    assert re.fullmatch("[A-Za-z0-9]{9}", item["call_id"])
    assert (body["tools"], body["tool_choice"]) == ([WEATHER, CLOCK], choice)
    assert body["parallel_tool_calls"] is False
    grammar = engine.requests[0].sampling.grammar
    assert grammar is not None
    held, _ = json.JSONDecoder().raw_decode(grammar.text.partition("%json ")[2])
    assert held.items() >= PARAMETERS.items()


@pytest.mark.parametrize(
    ("form", "grammar"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Grammar("json", '{"type": "object"}')),
        ({"type": "json_schema", "name": "x", "schema": SCHEMA}, Grammar("json", json.dumps(SCHEMA))),
    ],
)
async def test_text_format_is_what_the_text_has_to_be(
    client: httpx2.AsyncClient, engine: FakeEngine, form: dict[str, Any], grammar: Grammar | None
) -> None:
    body = await answered(client, text={"format": form, "verbosity": "medium"})
    assert engine.requests[0].sampling.grammar == grammar
    assert body["text"]["format"] == form
    if "schema" in form:
        held = engine.requests[0].sampling.grammar
        assert held is not None
        assert held.param == "text.format.schema"


@pytest.mark.parametrize(
    ("fields", "top"),
    [
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, 2),
        ({"top_logprobs": 2}, 2),
        ({"top_logprobs": 0}, None),
        ({"include": ["reasoning.encrypted_content"]}, None),
    ],
)
async def test_log_probabilities_where_they_are_asked_for(
    client: httpx2.AsyncClient, engine: FakeEngine, fields: dict[str, Any], top: int | None
) -> None:
    part = (await answered(client, **fields))["output"][0]["content"][0]
    assert engine.requests[0].sampling.logprobs == top
    assert [len(token["top_logprobs"]) for token in part["logprobs"]] == ([] if top is None else [top] * 13)
    events = await streamed(client, **fields)
    deltas = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    assert [token for delta in deltas for token in delta] == part["logprobs"]


async def test_what_is_refused_before_a_stream_begins_is_a_plain_reply(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    engine.refuse = Overloaded("full")
    assert error_of(await post(client, stream=True), 429)["code"] == "overloaded"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineFailure("The step failed"), "server_error"),
        (Overloaded("The step failed"), "rate_limit_exceeded"),
        (InvalidRequest("The step failed"), "invalid_prompt"),
    ],
)
async def test_a_failing_stream_ends_with_a_failed_response_and_an_error(
    client: httpx2.AsyncClient, engine: FakeEngine, error: Exception, code: str
) -> None:
    engine.fail_after = (2, error)
    *_, failed, last = await streamed(client)
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"] == {"code": code, "message": "The step failed"}
    assert failed["response"]["output"][0]["status"] == "incomplete"
    assert failed["response"]["output"][0]["content"][0]["text"] == REPLY[:2]
    assert last["type"] == "error"
    assert last["message"] == last["error"]["message"] == "The step failed"
    assert engine.aborted == [engine.requests[0].request_id]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "resp_1"), ("DELETE", "resp_1"), ("POST", "resp_1/cancel"), ("GET", "resp_1/input_items")],
)
async def test_stored_responses_do_not_exist(client: httpx2.AsyncClient, method: str, path: str) -> None:
    error = error_of(await client.request(method, f"/v1/responses/{path}"), 404)
    assert "not stored" in error["message"]
