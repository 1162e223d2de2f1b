"""Chat completions: the answer, its stream, its log-probabilities, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from brainstacks.engine.request import TokenLogprob
from brainstacks.errors import Unavailable
from tests.server.byte_tokenizer import ASSISTANT, SYSTEM, USER
from tests.server.completing import REPLY, chunks_of
from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]


async def chat(client: httpx2.AsyncClient, **fields: Any) -> Any:
    reply = await client.post("/v1/chat/completions", json={"model": "tiny", "messages": HI, **fields})
    assert reply.status_code == 200, reply.text
    return chunks_of(reply.text) if fields.get("stream") else reply.json()


async def test_an_answer_has_a_message_usage_and_routing(client: httpx2.AsyncClient) -> None:
    reply = await client.post("/v1/chat/completions", json={"model": "tiny", "messages": HI})
    body = reply.json()
    assert body["object"] == "chat.completion"
    assert body["id"] == f"chatcmpl-{reply.headers['x-request-id']}"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": REPLY, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 13, "total_tokens": 17}
    assert body["routing"]["mode"] == "routed"
    assert reply.headers["x-brainstacks-routing"].startswith("routed;")


async def test_messages_go_through_the_chat_template(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "s"}, {"role": "user", "content": parts}]
    await chat(client, messages=messages)
    assert engine.requests[0].prompt_ids == (SYSTEM, ord("s"), USER, ord("a"), ord("b"), ASSISTANT)


async def test_max_tokens_defaults_to_the_rest_of_the_context(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    await chat(client)
    await chat(client, max_tokens=5)
    await chat(client, max_completion_tokens=6)
    assert [request.sampling.max_tokens for request in engine.requests] == [252, 5, 6]


async def test_a_stream_has_role_first_null_reasons_then_the_end(client: httpx2.AsyncClient) -> None:
    chunks = await chat(client, stream=True)
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == REPLY
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert ["routing" in chunk for chunk in chunks] == [True] + [False] * (len(chunks) - 2) + [True]


async def test_a_stream_with_usage_ends_with_a_chunk_of_no_choices(client: httpx2.AsyncClient) -> None:
    chunks = await chat(client, stream=True, stream_options={"include_usage": True}, n=2)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 4, "completion_tokens": 27, "total_tokens": 31}
    assert chunks[-1]["routing"] == chunks[0]["routing"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert sum("routing" in chunk for chunk in chunks) == 2


async def test_n_answers_keep_their_indices_whole_and_streamed(client: httpx2.AsyncClient) -> None:
    whole = await chat(client, n=3)
    expected = [REPLY, f"{REPLY}!", f"{REPLY}!!"]
    assert [choice["message"]["content"] for choice in whole["choices"]] == expected
    texts = ["", "", ""]
    roles = []
    for chunk in await chat(client, n=3, stream=True):
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        roles += [choice["index"]] if "role" in choice["delta"] else []
    assert texts == expected
    assert roles == [0, 1, 2]


async def test_logprobs_have_bytes_and_as_many_alternatives_as_asked_for(client: httpx2.AsyncClient) -> None:
    body = await chat(client, logprobs=True, top_logprobs=2)
    content = body["choices"][0]["logprobs"]["content"]
    assert len(content) == 13
    assert content[0]["token"] == "H"
    assert content[0]["bytes"] == [72]
    assert [len(entry["top_logprobs"]) for entry in content] == [2] * 13
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == REPLY
    streamed = await chat(client, logprobs=True, top_logprobs=2, stream=True)
    joined = [
        e for chunk in streamed for e in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert joined == content


async def test_logprobs_without_a_count_have_no_alternatives(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    body = await chat(client, logprobs=True)
    assert engine.requests[0].sampling.logprobs == 0
    assert all(entry["top_logprobs"] == [] for entry in body["choices"][0]["logprobs"]["content"])
    assert (await chat(client, logprobs=False))["choices"][0]["logprobs"] is None


async def test_an_infinite_logprob_is_still_json(
    client: httpx2.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "logprob", lambda i, top: TokenLogprob(i, float("-inf"), "x", b"x"))
    body = await chat(client, logprobs=True)
    assert body["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0


@pytest.mark.parametrize(
    "field",
    ["functions", "function_call", "audio", "web_search_options", "prompt", "echo"],
)
async def test_what_is_not_supported_is_refused_by_name(client: httpx2.AsyncClient, field: str) -> None:
    reply = await client.post("/v1/chat/completions", json={"model": "tiny", "messages": HI, field: []})
    error = error_of(reply, 400)
    assert error["param"] == field
    assert error["code"] == "unsupported_parameter"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hi",
        [{"role": "user"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
        [{"role": "user", "content": "x", "name": "<|me|>"}],
        [{"role": "assistant", "content": "x", "refusal": "I can't"}],
        [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}],
    ],
)
async def test_messages_that_are_not_text_are_refused(
    client: httpx2.AsyncClient, engine: FakeEngine, messages: Any
) -> None:
    reply = await client.post("/v1/chat/completions", json={"model": "tiny", "messages": messages})
    assert error_of(reply, 400)["param"].startswith("messages")
    assert engine.requests == []


async def test_a_conversation_over_the_context_is_400_with_both_counts(client: httpx2.AsyncClient) -> None:
    long = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 255}]}
    error = error_of(await client.post("/v1/chat/completions", json=long), 400)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"
    assert "257" in error["message"]
    assert "256" in error["message"]


async def test_a_failing_stream_ends_with_an_error_event(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    engine.fail_after = (2, Unavailable("Out of device memory; send fewer tokens"))
    chunks = await chat(client, stream=True)
    assert chunks[-1]["error"]["code"] == "unavailable"
