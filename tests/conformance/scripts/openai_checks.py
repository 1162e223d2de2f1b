"""What `openai` for Python is asked for, of a server or of a proxy in front of one."""

from __future__ import annotations

import json
from typing import Any

import openai

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
)
from tests.conformance.scripts.report import expect, expect_raised, report

ASKED: list[Any] = [{"role": "user", "content": QUESTION}]
SETTINGS: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": TOKENS}
ROOMY: dict[str, Any] = {**SETTINGS, "max_tokens": CALL_TOKENS}


class OpenAIChecks:
    """The checks, of the server at `url`."""

    def __init__(self, url: str, key: str = KEY) -> None:
        self.chat = openai.OpenAI(base_url=url, api_key=key, max_retries=0).chat.completions

    def report(self) -> None:
        report(
            plain=self.plain,
            streaming=self.streaming,
            multi_turn=self.multi_turn,
            structured=self.structured,
            tools=self.tools,
            logprobs=self.logprobs,
            errors=self.errors,
            routing=self.routing,
        )

    def plain(self) -> None:
        answer = self.chat.create(messages=ASKED, **SETTINGS)
        expect(answer.choices[0].message.content, "the answer is empty")
        expect(answer.usage and answer.usage.completion_tokens <= TOKENS, f"usage: {answer.usage}")

    def streaming(self) -> None:
        whole = self.chat.create(messages=ASKED, **SETTINGS)
        counted: Any = {**SETTINGS, "stream_options": {"include_usage": True}}
        with self.chat.stream(messages=ASKED, **counted) as stream:
            deltas = [event.delta for event in stream if event.type == "content.delta"]
            final = stream.get_final_completion()
        expect(len(deltas) > 1, "it came in one piece")
        expect("".join(deltas) == whole.choices[0].message.content, "streamed, it is another answer")
        counts = [one.usage and one.usage.total_tokens for one in (final, whole)]
        expect(counts[0] and counts[0] == counts[1], f"tokens, streamed and whole: {counts}")

    def multi_turn(self) -> None:
        first = self.chat.create(messages=ASKED, **SETTINGS).choices[0].message
        follow_up: Any = {"role": "user", "content": FOLLOW_UP}
        for sent_back in (first, first.model_dump()):
            second = self.chat.create(messages=[*ASKED, sent_back, follow_up], **SETTINGS)
            expect(second.choices[0].message.content, "the answer is empty")

    def structured(self) -> None:
        record: Any = {"role": "user", "content": RECORD}
        answer = self.chat.parse(messages=[record], response_format=Person, **ROOMY)
        expect(answer.choices[0].message.parsed, f"no object: {answer.choices[0]}")

    def tools(self) -> None:
        question: Any = {"role": "user", "content": PRODUCT}
        room = {**ROOMY, "tools": [MULTIPLY], "parallel_tool_calls": False}
        self.chat.create(messages=[question], tool_choice="auto", **room)
        message = self.chat.create(messages=[question], tool_choice="required", **room).choices[0].message
        expect(message.tool_calls, f"no call: {message}")
        call = message.tool_calls[0]
        expect(json.loads(call.function.arguments).keys() == {"a", "b"}, f"the call: {call}")
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "51"}
        last = self.chat.create(messages=[question, message, result], **room).choices[0].message
        expect(last.content or last.tool_calls, "the answer after the result is empty")

    def logprobs(self) -> None:
        answer = self.chat.create(messages=ASKED, logprobs=True, top_logprobs=2, **SETTINGS)
        found: Any = answer.choices[0].logprobs
        expect(found and len(found.content[0].top_logprobs) == 2, f"logprobs: {found}")

    def errors(self) -> None:
        unknown = {**SETTINGS, "model": UNKNOWN}
        expect_raised(openai.NotFoundError, lambda: self.chat.create(messages=ASKED, **unknown))

    def routing(self) -> None:
        answer = self.chat.create(messages=ASKED, extra_body=ROUTING, **SETTINGS)
        expect((answer.model_extra or {})["routing"]["active"] == ["math"], f"the answer: {answer}")
