"""`llama-index-llms-openai-like`: `OpenAILike`."""

from __future__ import annotations

from typing import Any

import openai
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

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


def chat(model: str = MODEL, max_tokens: int = TOKENS, **options: Any) -> Any:
    return OpenAILike(
        api_base=URL,
        api_key=KEY,
        model=model,
        max_tokens=max_tokens,
        temperature=0,
        max_retries=0,
        is_chat_model=True,
        is_function_calling_model=True,
        **options,
    )


asked = ChatMessage(role="user", content=QUESTION)


def plain() -> None:
    expect(chat().chat([asked]).message.content, "the answer is empty")
    completions = OpenAILike(
        api_base=URL, api_key=KEY, model=MODEL, max_tokens=TOKENS, temperature=0, is_chat_model=False
    )
    expect(completions.complete(QUESTION).text, "the completion is empty")


def streaming() -> None:
    parts = [part.delta for part in chat().stream_chat([asked])]
    expect("".join(parts) == chat().chat([asked]).message.content, "streamed, it is another answer")


def multi_turn() -> None:
    first = chat().chat([asked]).message
    second = chat().chat([asked, first, ChatMessage(role="user", content=FOLLOW_UP)])
    expect(second.message.content, "the answer is empty")


def structured() -> None:
    prompt = PromptTemplate(RECORD)
    for by_schema in (True, False):  # and by a call
        llm = chat(max_tokens=CALL_TOKENS, should_use_structured_outputs=by_schema)
        person = llm.structured_predict(Person, prompt)
        expect(isinstance(person, Person), f"no object: {person}")


def tools() -> None:
    room, product = chat(max_tokens=CALL_TOKENS), ChatMessage(role="user", content=PRODUCT)
    functions = [FunctionTool.from_defaults(multiply)]
    room.chat_with_tools(functions, product)
    first = room.chat_with_tools(functions, product, tool_required=True)
    (call,) = room.get_tool_calls_from_response(first)
    expect(call.tool_kwargs.keys() == {"a", "b"}, f"the call: {call}")
    result = ChatMessage(role="tool", content="51", additional_kwargs={"tool_call_id": call.tool_id})
    last = room.chat_with_tools(functions, chat_history=[product, first.message, result]).message
    expect(last.content or last.additional_kwargs.get("tool_calls"), f"the answer after the result: {last}")


def logprobs() -> None:
    found = chat(logprobs=True, top_logprobs=2).chat([asked]).logprobs
    expect(found and len(found[0]) == 2, f"logprobs: {found}")


def errors() -> None:
    expect_raised(openai.NotFoundError, lambda: chat(UNKNOWN).chat([asked]))


def routing() -> None:
    answer = chat(additional_kwargs={"extra_body": ROUTING}).chat([asked])
    expect(answer.raw.routing["active"] == ["math"], f"the answer: {answer.raw}")


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
