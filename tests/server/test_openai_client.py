"""The real `openai` client reads what we send, whole and streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest
from fastapi import FastAPI

from brainstacks.errors import EngineFailure, Overloaded
from tests.server.byte_tokenizer import ASSISTANT, USER
from tests.server.completing import REPLY
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


@pytest.fixture
def options() -> dict[str, Any]:
    return {"api_key": "key-one"}


@pytest.fixture
async def stock(app: FastAPI) -> AsyncIterator[openai.AsyncOpenAI]:
    http = openai.DefaultAsyncHttpxClient(transport=httpx2.ASGITransport(app=app))
    async with openai.AsyncOpenAI(
        api_key="key-one", base_url="http://test/v1", http_client=http, max_retries=0
    ) as client:
        yield client


async def test_models(stock: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in stock.models.list()] == [
        "tiny",
        "tiny:base",
        "tiny:ungated",
        "tiny:chat",
        "tiny:math",
    ]
    assert (await stock.models.retrieve("tiny:chat")).owned_by == "brainstacks"


async def test_a_chat_whole_and_streamed_is_the_same(stock: openai.AsyncOpenAI) -> None:
    whole = await stock.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        logprobs=True,
        top_logprobs=1,
        extra_body={"routing": {"mode": "fixed", "weights": {"math": 0.9}}},
    )
    assert whole.choices[0].message.content == REPLY
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.content is not None
    assert len(whole.choices[0].logprobs.content) == 13
    assert whole.usage is not None
    assert whole.usage.total_tokens == 17
    assert whole.model_extra is not None
    assert whole.model_extra["routing"]["weights"] == {"math": 0.9}

    stream = await stock.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == REPLY
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


async def test_a_second_turn_sends_back_the_first_reply_as_it_is(
    stock: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    conversation: list[Any] = [{"role": "user", "content": "hi"}]
    first = await stock.chat.completions.create(model="tiny", messages=conversation)
    for sent_back in (first.choices[0].message, first.choices[0].message.model_dump()):
        turn = [*conversation, sent_back, {"role": "user", "content": "?"}]
        second = await stock.chat.completions.create(model="tiny", messages=turn)
        assert second.choices[0].message.content == REPLY
    ids = (USER, *b"hi", ASSISTANT, *REPLY.encode(), USER, *b"?", ASSISTANT)
    assert [request.prompt_ids for request in engine.requests[1:]] == [ids, ids]


async def test_a_completion_whole_and_streamed_is_the_same(stock: openai.AsyncOpenAI) -> None:
    whole = await stock.completions.create(model="tiny", prompt="hi", echo=True, logprobs=1, n=2)
    assert [choice.text for choice in whole.choices] == [f"hi{REPLY}", f"hi{REPLY}!"]
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.tokens is not None
    assert len(whole.choices[0].logprobs.tokens) == 15
    stream = await stock.completions.create(model="tiny", prompt="hi", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == REPLY


async def test_refusals_become_the_clients_own_exceptions(
    stock: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await stock.completions.create(model="gpt", prompt="x")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        await stock.completions.create(model="tiny", prompt="x", suffix="y")
    assert wrong.value.param == "suffix"
    with pytest.raises(openai.AuthenticationError):
        await stock.with_options(api_key="wrong").models.list()
    engine.refuse = Overloaded("full")
    with pytest.raises(openai.RateLimitError) as full:
        await stock.completions.create(model="tiny", prompt="x")
    assert full.value.type == "rate_limit_error"


async def test_an_error_in_a_stream_becomes_an_exception(
    stock: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    engine.fail_after = (2, EngineFailure("The step failed"))
    stream = await stock.completions.create(model="tiny", prompt="x", stream=True)
    with pytest.raises(openai.APIError, match="The step failed") as failed:
        async for _ in stream:
            pass
    assert failed.value.code == "engine_failure"


async def test_a_response_whole_and_streamed_is_the_same(stock: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": "tiny", "input": "hi", "include": ["message.output_text.logprobs"]}
    whole = await stock.responses.create(**asked, extra_body={"routing": {"mode": "base"}})
    assert (whole.output_text, whole.status) == (REPLY, "completed")
    assert whole.usage is not None
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (4, 13)
    assert whole.model_extra is not None
    assert whole.model_extra["routing"]["mode"] == "base"
    async with stock.responses.stream(**asked) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == [*REPLY[:8], *[
        "", "ö", *REPLY[9:]
    ]]  # fmt: skip
    assert [event.snapshot for event in events if event.type == "response.output_text.delta"][-1] == REPLY
    assert [event.text for event in events if event.type == "response.output_text.done"] == [REPLY]
    assert final.output_text == REPLY
    assert final.usage == whole.usage


async def test_a_second_turn_sends_back_the_output_as_it_is(
    stock: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    conversation: list[Any] = [{"role": "user", "content": "hi"}]
    first = await stock.responses.create(model="tiny", input=conversation)
    for sent_back in (first.output, [item.model_dump() for item in first.output]):
        turn: Any = [*conversation, *sent_back, {"role": "user", "content": "?"}]
        assert (await stock.responses.create(model="tiny", input=turn)).output_text == REPLY
    ids = (USER, *b"hi", ASSISTANT, *REPLY.encode(), USER, *b"?", ASSISTANT)
    assert [request.prompt_ids for request in engine.requests[1:]] == [ids, ids]


async def test_a_failing_response_is_told_and_becomes_an_exception(
    stock: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    engine.fail_after = (2, EngineFailure("The step failed"))
    stream = await stock.responses.create(model="tiny", input="x", stream=True)
    seen = []

    async def read() -> None:
        async for event in stream:
            seen.append(event)

    with pytest.raises(openai.APIError, match="The step failed") as failed:
        await read()
    assert failed.value.code == "engine_failure"
    assert seen[-1].type == "response.failed"
    with pytest.raises(openai.NotFoundError, match="not stored"):
        await stock.responses.retrieve("resp_1")
