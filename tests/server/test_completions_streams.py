"""A stream joins to the whole answer; an error before it is a status, one in the middle an event of it."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from brainstacks.errors import EngineFailure, Overloaded
from tests.server.completing import REPLY, complete, stream
from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


async def test_a_stream_joins_to_the_whole_and_ends_with_done(client: httpx2.AsyncClient) -> None:
    whole = await complete(client)
    chunks = await stream(client)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert not any("usage" in chunk for chunk in chunks)


async def test_a_streams_first_and_last_chunk_carry_routing(client: httpx2.AsyncClient) -> None:
    for options in ({}, {"stream_options": {"include_usage": True}}):
        chunks = await stream(client, **options)
        assert ["routing" in chunk for chunk in chunks] == [True] + [False] * (len(chunks) - 2) + [True]
        assert chunks[0]["routing"]["weights"] == {"chat": 0.9, "math": 0.45}


async def test_a_streams_usage_chunk_comes_last_without_choices(client: httpx2.AsyncClient) -> None:
    chunks = await stream(client, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 13, "total_tokens": 15}
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks[:-1])


async def test_streamed_logprobs_join_to_the_whole_ones(client: httpx2.AsyncClient) -> None:
    fields: dict[str, Any] = {"prompt": "né", "echo": True, "logprobs": 1}
    whole = (await complete(client, **fields))["choices"][0]["logprobs"]
    joined: dict[str, list[Any]] = {name: [] for name in whole}
    for chunk in await stream(client, **fields):
        for name, values in (chunk["choices"][0]["logprobs"] or {}).items():
            joined[name].extend(values)
    assert joined == whole


async def test_streams_of_several_prompts_and_completions_keep_their_indices(
    client: httpx2.AsyncClient,
) -> None:
    texts: dict[int, str] = {}
    for chunk in await stream(client, prompt=["a", "b"], n=2, echo=True):
        (choice,) = chunk["choices"]
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert texts == {0: f"a{REPLY}", 1: f"a{REPLY}!", 2: f"b{REPLY}", 3: f"b{REPLY}!"}


async def test_an_error_in_the_middle_of_a_stream_is_an_event_of_it(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    engine.fail_after = (3, EngineFailure("The step failed; send the request again"))
    chunks = await stream(client)
    assert len(chunks) == 4
    assert chunks[-1] == {
        "error": {
            "message": "The step failed; send the request again",
            "type": "server_error",
            "param": None,
            "code": "engine_failure",
        }
    }


async def test_a_bug_in_the_middle_of_a_stream_shows_nothing_of_its_inside(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    engine.fail_after = (1, RuntimeError("/secret/path"))
    chunks = await stream(client)
    assert chunks[-1]["error"]["code"] == "internal_error"
    assert "secret" not in json.dumps(chunks)


async def test_a_refusal_before_the_stream_is_a_status_not_an_event(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    engine.refuse = Overloaded("The queue is full (256); try again", retry_after=3)
    for streamed in (True, False):
        reply = await client.post(
            "/v1/completions", json={"model": "tiny", "prompt": "x", "stream": streamed}
        )
        assert error_of(reply, 429)["code"] == "overloaded"
        assert reply.headers["retry-after"] == "3"
