"""What the server returns, and what clients make of it, is valid input."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.server.byte_tokenizer import ASSISTANT, USER
from tests.server.completing import REPLY
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

HI = {"role": "user", "content": "hi"}
AGAIN = {"role": "user", "content": "?"}
SENT_BACK: dict[str, dict[str, Any]] = {
    "openai-python": {
        "content": REPLY, "refusal": None, "role": "assistant", "annotations": None, "audio": None,
        "function_call": None, "tool_calls": None,
    },
    "openai-js": {"role": "assistant", "content": REPLY, "refusal": None},
    "litellm": {
        "content": REPLY, "role": "assistant", "tool_calls": None, "function_call": None, "annotations": [],
        "provider_specific_fields": None,
    },
    "litellm, of a conversation begun with another server": {
        "content": REPLY, "role": "assistant", "tool_calls": None, "function_call": None,
        "reasoning_content": "Hm.", "provider_specific_fields": {"citations": None, "thinking_blocks": []},
    },
    "langchain": {"role": "assistant", "content": REPLY, "name": "helper", "tool_calls": []},
    "null content": {"role": "assistant", "content": None, "reasoning_content": "Hm."},
    "no content": {"role": "assistant"},
    "cached parts": {
        "role": "assistant",
        "content": [{"type": "text", "text": REPLY, "cache_control": {"type": "ephemeral"}}],
    },
}  # fmt: skip


async def test_the_message_that_was_returned_is_taken_as_it_is(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    reply = await client.post("/v1/chat/completions", json={"model": "tiny", "messages": [HI]})
    message = reply.json()["choices"][0]["message"]
    again = await client.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": [HI, message, AGAIN]}
    )
    assert again.status_code == 200, again.text
    ids = (USER, *b"hi", ASSISTANT, *REPLY.encode(), USER, *b"?", ASSISTANT)
    assert engine.requests[1].prompt_ids == ids


@pytest.mark.parametrize("client_name", SENT_BACK)
async def test_what_clients_send_back_is_taken(
    client: httpx2.AsyncClient, engine: FakeEngine, client_name: str
) -> None:
    message = SENT_BACK[client_name]
    for path in ("/v1/chat/completions", "/v1/route", "/tokenize"):
        reply = await client.post(path, json={"model": "tiny", "messages": [HI, message, AGAIN]})
        assert reply.status_code == 200, reply.text
    text = REPLY.encode() if message.get("content") else b""
    assert engine.requests[0].prompt_ids == (USER, *b"hi", ASSISTANT, *text, USER, *b"?", ASSISTANT)


async def test_what_had_no_effect_is_named_in_a_header(client: httpx2.AsyncClient) -> None:
    messages = [HI, {**SENT_BACK["cached parts"], "reasoning_content": "Hm."}, AGAIN]
    body = {
        "model": "tiny",
        "messages": messages,
        "user": "me",
        "store": False,
        "service_tier": "auto",
        "modalities": ["text"],
        "chat_template_kwargs": {"enable_thinking": True, "other": 1},
    }
    expected = (
        "messages.content.cache_control, messages.reasoning_content, modalities, service_tier, store, user, "
        "chat_template_kwargs.other"
    )
    whole = await client.post("/v1/chat/completions", json=body)
    streamed = await client.post(
        "/v1/chat/completions",
        json={**body, "stream": True, "stream_options": {"include_obfuscation": True}},
    )
    assert whole.headers["x-brainstacks-ignored"] == expected
    assert streamed.headers["x-brainstacks-ignored"] == expected.replace(
        "store, ", "store, stream_options.include_obfuscation, "
    )
    plain = await client.post(
        "/v1/completions", json={"model": "tiny", "prompt": "x", "metadata": {"a": "b"}}
    )
    assert plain.headers["x-brainstacks-ignored"] == "metadata"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("store", True),
        ("service_tier", "flex"),
        ("modalities", ["text", "audio"]),
        ("modalities", []),
        ("reasoning_effort", "high"),
        ("verbosity", "low"),
    ],
)
async def test_a_value_that_could_change_the_answer_is_refused(
    client: httpx2.AsyncClient, engine: FakeEngine, field: str, value: Any
) -> None:
    reply = await client.post("/v1/chat/completions", json={"model": "tiny", "messages": [HI], field: value})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith(field)
    assert engine.requests == []
