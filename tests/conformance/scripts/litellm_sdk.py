"""`litellm`: `completion`, with its provider for servers that are like OpenAI's."""

from __future__ import annotations

import json
from typing import Any

import litellm

from tests.conformance.scripts.person import Person
from tests.conformance.scripts.questions import (
    CALL_TOKENS,
    FOLLOW_UP,
    KEY,
    MODEL,
    MULTIPLY,
    PRODUCT,
    QUESTION,
    RECORD,
    ROUTING,
    TOKENS,
    UNKNOWN,
    URL,
)
from tests.conformance.scripts.report import expect, expect_raised, report

asked: list[Any] = [{"role": "user", "content": QUESTION}]


def complete(messages: list[Any], model: str = MODEL, **fields: Any) -> Any:
    settings = {"temperature": 0, "max_tokens": TOKENS, "num_retries": 0, **fields}
    return litellm.completion(f"openai/{model}", messages, api_base=URL, api_key=KEY, **settings)


def plain() -> None:
    answer = complete(asked)
    expect(answer.choices[0].message.content, "the answer is empty")
    expect(answer.usage.completion_tokens <= TOKENS, f"usage: {answer.usage}")


def streaming() -> None:
    chunks = list(complete(asked, stream=True, stream_options={"include_usage": True}))
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    whole = complete(asked)
    expect("".join(parts) == whole.choices[0].message.content, "streamed, it is another answer")
    expect(chunks[-1].usage.total_tokens == whole.usage.total_tokens, f"the last chunk: {chunks[-1]}")


def multi_turn() -> None:
    first = complete(asked).choices[0].message
    follow_up = {"role": "user", "content": FOLLOW_UP}
    for sent_back in (first, first.model_dump()):
        second = complete([*asked, sent_back, follow_up])
        expect(second.choices[0].message.content, "the answer is empty")


def structured() -> None:
    answer = complete([{"role": "user", "content": RECORD}], response_format=Person, max_tokens=CALL_TOKENS)
    Person.model_validate_json(answer.choices[0].message.content)


def tools() -> None:
    question = {"role": "user", "content": PRODUCT}
    room: dict[str, Any] = {"max_tokens": CALL_TOKENS, "tools": [MULTIPLY]}
    complete([question], tool_choice="auto", **room)
    message = complete([question], tool_choice="required", **room).choices[0].message
    expect(message.tool_calls, f"no call: {message}")
    call = message.tool_calls[0]
    expect(json.loads(call.function.arguments).keys() == {"a", "b"}, f"{call}")
    result = {"role": "tool", "tool_call_id": call.id, "name": "multiply", "content": "51"}
    last = complete([question, message.model_dump(), result], **room).choices[0].message
    expect(last.content or last.tool_calls, "the answer after the result is empty")


def logprobs() -> None:
    found = complete(asked, logprobs=True, top_logprobs=2).choices[0].logprobs
    expect(len(found.content[0].top_logprobs) == 2, f"logprobs: {found}")


def errors() -> None:
    expect_raised(litellm.NotFoundError, lambda: complete(asked, UNKNOWN))


def routing() -> None:
    answer = complete(asked, extra_body=ROUTING)
    expect(answer.routing["active"] == ["math"], f"the answer: {answer}")


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
