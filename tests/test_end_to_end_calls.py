"""The real server and functions to call, as the official client has them: in chats and in responses."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.packaged_server import BASE, PROMPTS, Server

pytestmark = pytest.mark.slow


def test_the_official_client_responds_streams_parses_calls_and_takes_its_output_back(server: Server) -> None:
    client = server.openai()
    asked: dict[str, Any] = {"model": BASE, "temperature": 0, "max_output_tokens": 48}
    question = {"role": "user", "content": PROMPTS["math"]}
    whole = client.responses.create(input=[question], **asked)
    assert whole.output_text
    with client.responses.stream(input=[question], **asked) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == whole.output_text
    turns = [question, *whole.output, {"role": "user", "content": "And how many in two boxes?"}]
    again = client.responses.create(input=turns, **asked)
    assert again.usage.input_tokens > whole.usage.total_tokens

    class Total(BaseModel):
        pencils: Literal[29, 36]
        sure: bool

    held = client.responses.parse(input=PROMPTS["math"], text_format=Total, **asked)
    assert isinstance(held.output_parsed, Total)
    parameters = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    weather = {"type": "function", "name": "weather", "strict": True, "parameters": parameters}
    named = {"type": "function", "name": "weather"}
    calling = client.responses.create(input="Weather in Oslo?", tools=[weather], tool_choice=named, **asked)
    (call,) = calling.output
    assert (call.type, call.name) == ("function_call", "weather")
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    told = client.responses.create(
        input=[{"role": "user", "content": "Weather in Oslo?"}, *calling.output, result],
        tools=[weather],
        **asked,
    )
    assert told.output


def test_the_official_client_calls_functions_and_sends_their_results_back(server: Server) -> None:
    client = server.openai()
    city = {"enum": ["Paris", "Rome"]}
    days = {"type": "integer", "minimum": 1, "maximum": 7}
    schemas = {
        "weather": {
            "type": "object",
            "properties": {"city": city, "days": days},
            "required": ["city", "days"],
        },
        "clock": {"type": "object", "properties": {"city": city}, "required": ["city"]},
    }
    asked: dict[str, Any] = {
        "model": BASE,
        "tools": [
            {
                "type": "function",
                "function": {"name": name, "parameters": {**schema, "additionalProperties": False}},
            }
            for name, schema in schemas.items()
        ],
        "max_tokens": 120,
    }
    question = [{"role": "user", "content": "What is the weather in Paris, and what time is it in Rome?"}]
    first = client.chat.completions.create(messages=question, tool_choice="required", seed=1, n=4, **asked)
    for choice in first.choices:
        assert choice.finish_reason == "tool_calls"
        for call in choice.message.tool_calls:
            given = json.loads(call.function.arguments)
            assert given.keys() == set(schemas[call.function.name]["required"])
            assert given["city"] in city["enum"]
            assert 1 <= given.get("days", 1) <= 7

    stream = client.chat.completions.create(
        messages=question,
        tool_choice={"type": "function", "function": {"name": "clock"}},
        parallel_tool_calls=False,
        temperature=0,
        stream=True,
        **asked,
    )
    parts = [choice for chunk in stream for choice in chunk.choices]
    (call,) = [call for part in parts for call in part.delta.tool_calls or ()]
    assert (call.index, call.function.name) == (0, "clock")
    assert parts[-1].finish_reason == "tool_calls"

    made = first.choices[0].message
    results = [{"role": "tool", "tool_call_id": one.id, "content": "21"} for one in made.tool_calls]
    after = client.chat.completions.create(messages=[*question, made, *results], tool_choice="none", **asked)
    assert after.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="has a result already"):
        client.chat.completions.create(messages=[*question, made, *results, results[0]], **asked)
