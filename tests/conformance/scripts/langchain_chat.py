"""`langchain-openai`: `ChatOpenAI`."""

from __future__ import annotations

from typing import Any

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI

from tests.conformance.scripts.person import Person
from tests.conformance.scripts.questions import (
    CALL_TOKENS,
    FOLLOW_UP,
    KEY,
    MODEL,
    PRODUCT,
    QUESTION,
    RECORD,
    ROUTING,
    TOKENS,
    UNKNOWN,
    URL,
    multiply,
)
from tests.conformance.scripts.report import expect, expect_raised, report

MULTIPLY = StructuredTool.from_function(multiply)


def chat(model: str = MODEL, max_tokens: int = TOKENS, **options: Any) -> Any:
    return ChatOpenAI(
        base_url=URL,
        api_key=KEY,
        model=model,
        max_tokens=max_tokens,
        temperature=0,
        max_retries=0,
        **options,
    )


def plain() -> None:
    answer = chat().invoke(QUESTION)
    expect(answer.content, "the answer is empty")
    expect(answer.usage_metadata["output_tokens"] <= TOKENS, f"usage: {answer.usage_metadata}")


def streaming() -> None:
    parts = [part.content for part in chat(stream_usage=True).stream(QUESTION)]
    expect(len(parts) > 3, "it came in one piece")
    expect("".join(parts) == chat().invoke(QUESTION).content, "streamed, it is another answer")


def multi_turn() -> None:
    asked = HumanMessage(QUESTION)
    second = chat().invoke([asked, chat().invoke([asked]), HumanMessage(FOLLOW_UP)])
    expect(second.content, "the answer is empty")


def structured() -> None:
    person = chat(max_tokens=CALL_TOKENS).with_structured_output(Person).invoke(RECORD)
    expect(isinstance(person, Person), f"no object: {person}")


def tools() -> None:
    question, room = HumanMessage(PRODUCT), chat(max_tokens=CALL_TOKENS)
    auto = room.bind_tools([MULTIPLY], parallel_tool_calls=False)
    auto.invoke([question])
    first = room.bind_tools([MULTIPLY], tool_choice="required", strict=True).invoke([question])
    expect(first.tool_calls, f"no call: {first}")
    result = MULTIPLY.invoke(first.tool_calls[0])
    expect(isinstance(result, ToolMessage), f"no result: {result}")
    second = auto.invoke([question, first, result])
    expect(second.content or second.tool_calls, "the answer after the result is empty")


def logprobs() -> None:
    answer = chat(logprobs=True, top_logprobs=2).invoke(QUESTION)
    found = answer.response_metadata["logprobs"]["content"]
    expect(len(found[0]["top_logprobs"]) == 2, f"logprobs: {found}")


def errors() -> None:
    expect_raised(openai.NotFoundError, lambda: chat(UNKNOWN).invoke(QUESTION))


def routing() -> None:
    answer = chat(extra_body=ROUTING, include_response_headers=True).invoke(QUESTION)
    headers = answer.response_metadata["headers"]
    expect("math" in headers["x-brainstacks-routing"], f"headers: {headers}")


report(
    plain=plain,
    streaming=streaming,
    multi_turn=multi_turn,
    structured=structured,
    tools=tools,
    logprobs=logprobs,
    errors=errors,
    routing=routing,
)
