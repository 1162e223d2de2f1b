"""Where the base's chat template has functions, calls and results are written and read in its own format."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import httpx2
import pytest

from server.tool_format import ToolFormat, format_of
from tests.server.completing import chunks_of
from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngine
from tests.server.tool_templates import TEMPLATES, tokenizer_with

pytestmark = pytest.mark.anyio

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": NOTHING}},
]
HI: list[Any] = [{"role": "user", "content": "hi"}]
SPECIAL = "<|im_end|>"
IN_TEMPLATES = [name for name in TEMPLATES if name != "generic"]
MARKED = [name for name in IN_TEMPLATES if name != "llama3"]


@pytest.fixture(params=IN_TEMPLATES)
def template(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def form(template: str, engine: FakeEngine) -> ToolFormat:
    """The engine has the template's tokenizer before an app is made of it."""
    tokenizer = tokenizer_with(TEMPLATES[template])
    engine.tokenizer = tokenizer  # type: ignore[assignment]  # a real one for a fake one
    engine.model = dataclasses.replace(engine.model, max_context=8192, vocab_size=300)
    return format_of(tokenizer)


async def ask(client: httpx2.AsyncClient, **fields: Any) -> httpx2.Response:
    body = {"model": "tiny", "messages": HI, "tools": TOOLS, **fields}
    return await client.post("/v1/chat/completions", json=body)


def calls(*made: tuple[str, str, str]) -> dict[str, Any]:
    """An assistant's message that makes calls (id, name, arguments)."""
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in made
        ],
    }


def prompt(engine: FakeEngine) -> str:
    return engine.tokenizer.decode(engine.requests[-1].prompt_ids)


async def test_the_template_is_told_of_the_functions(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    assert (await ask(client)).status_code == 200
    assert f"<|im_start|>system\n{json.dumps(TOOLS[0])}\n{json.dumps(TOOLS[1])}\n{SPECIAL}" in prompt(engine)
    await ask(client, tool_choice="none")
    assert "<|im_start|>system" not in prompt(engine)


async def test_a_function_without_parameters_is_told_of_as_it_is_held(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    await ask(client, tools=[{"type": "function", "function": {"name": "clock"}}])
    assert json.dumps(NOTHING) in prompt(engine)


async def test_the_format_is_named_where_the_tokenizer_is_described(
    client: httpx2.AsyncClient, form: ToolFormat
) -> None:
    assert (await client.get("/tokenizer_info")).json()["tool_format"] == form.name


async def test_calls_and_results_of_earlier_turns_are_the_templates(
    client: httpx2.AsyncClient, engine: FakeEngine, form: ToolFormat
) -> None:
    made = calls(("123456789", "weather", '{"city": "Köln"}'))
    result = {"role": "tool", "tool_call_id": "123456789", "content": f"rain {SPECIAL}"}
    for fields in ({}, {"tools": None}):
        assert (await ask(client, messages=[*HI, made, result], **fields)).status_code == 200
        assert f'{form.first}{form.head("weather")}{{"city": "Köln"}}' in prompt(engine)
        assert f"<tool_response>\nrain {SPECIAL}\n</tool_response>" in prompt(engine)
        assert engine.requests[-1].prompt_ids[-20:].count(258) == 1, "the result's special token is a text"
    tokenized = await client.post("/tokenize", json={"model": "tiny", "messages": [*HI, made, result]})
    assert tuple(tokenized.json()["tokens"]) == engine.requests[-1].prompt_ids


async def test_several_calls_of_a_turn_are_the_templates_or_refused_by_it(
    client: httpx2.AsyncClient, engine: FakeEngine, form: ToolFormat
) -> None:
    made = calls(("123456789", "weather", "{}"), ("abcdefghi", "clock", ""))
    results = [{"role": "tool", "tool_call_id": i, "content": "x"} for i in ("abcdefghi", "123456789")]
    reply = await ask(client, messages=[*HI, made, *results])
    if form.several:
        assert form.head("weather").removeprefix(form.marker) in prompt(engine)
        assert form.head("clock").removeprefix(form.marker) in prompt(engine)
    else:
        assert "one call at a time" in error_of(reply, 400)["message"]


async def test_functions_that_cannot_fit_are_refused_before_they_are_encoded(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "x" * 200_000}}
    error = error_of(await ask(client, tools=[tool]), 400)
    assert (error["param"], error["code"]) == ("tools", "context_length_exceeded")
    made = calls(("123456789", "weather", json.dumps({"city": "x" * 200_000})))
    error = error_of(await ask(client, messages=[*HI, made]), 400)
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")


async def test_functions_that_hold_the_text_of_a_special_token_are_refused(
    client: httpx2.AsyncClient,
) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": SPECIAL}}
    assert error_of(await ask(client, tools=[tool]), 400)["param"] == "tools"
    made = calls(("123456789", "weather", json.dumps({"city": SPECIAL})))
    assert error_of(await ask(client, messages=[*HI, made]), 400)["param"] == "messages"


@pytest.mark.parametrize("template", MARKED, indirect=True)
async def test_a_text_and_two_calls_are_the_same_streamed_and_whole(
    client: httpx2.AsyncClient, engine: FakeEngine, form: ToolFormat
) -> None:
    one, two = (
        f'{form.head("weather")}{{"city": "Köln"}}{form.after}',
        f"{form.head('clock')}{{}}{form.after}",
    )
    engine.reply = f"I look.\n{form.first}{one}{form.between}{two}{form.last}"
    (choice,) = (await ask(client)).json()["choices"]
    message = choice["message"]
    assert message["content"] == "I look."
    assert choice["finish_reason"] == "tool_calls"
    told = [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]
    assert told == [("weather", '{"city": "Köln"}'), ("clock", "{}")]
    assert len({call["id"] for call in message["tool_calls"]}) == 2

    chunks = chunks_of((await ask(client, stream=True, logprobs=True, return_token_ids=True)).text)
    choices = [one for chunk in chunks for one in chunk["choices"]]
    deltas = [one["delta"] for one in choices]
    assert "".join(delta.get("content") or "" for delta in deltas) == "I look."
    streamed = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["index"] for call in streamed] == [0, 1]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in streamed] == told
    assert len({call["id"] for call in streamed}) == 2
    assert choices[-1]["finish_reason"] == "tool_calls"
    tokens = [token for one in choices for token in (one["logprobs"] or {"content": ()})["content"]]
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == engine.reply
    assert [i for one in choices for i in one.get("token_ids", ())] == list(engine.reply.encode())


@pytest.mark.parametrize("template", MARKED, indirect=True)
async def test_what_only_looks_like_a_call_is_text(
    client: httpx2.AsyncClient, engine: FakeEngine, form: ToolFormat
) -> None:
    engine.reply = f"So: {form.one('other', '{}')} and {form.marker}."
    (choice,) = (await ask(client)).json()["choices"]
    assert choice["message"]["content"] == engine.reply
    assert choice["finish_reason"] == "stop"
    assert "tool_calls" not in choice["message"]
    chunks = chunks_of((await ask(client, stream=True)).text)
    assert "".join(one["delta"].get("content") or "" for c in chunks for one in c["choices"]) == engine.reply


async def test_special_tokens_stay_in_the_text_where_calls_are_marked_by_one(
    client: httpx2.AsyncClient, engine: FakeEngine, form: ToolFormat
) -> None:
    await ask(client)
    assert engine.requests[-1].sampling.skip_special_tokens is not form.special
    await ask(client, tools=None)
    assert engine.requests[-1].sampling.skip_special_tokens is True
