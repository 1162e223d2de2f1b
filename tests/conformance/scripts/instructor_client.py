"""`instructor`: objects from text, by a schema and by a call."""

from __future__ import annotations

from typing import Any

import instructor
import openai
from pydantic import field_validator

from tests.conformance.scripts.person import Person
from tests.conformance.scripts.questions import (
    CALL_TOKENS,
    KEY,
    MODEL,
    QUESTION,
    RECORD,
    ROUTING,
    TOKENS,
    UNKNOWN,
    URL,
)
from tests.conformance.scripts.report import expect, report

stock = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
by_schema = instructor.from_openai(stock, mode=instructor.Mode.JSON_SCHEMA)
by_call = instructor.from_openai(stock, mode=instructor.Mode.TOOLS)
record: Any = {
    "model": MODEL,
    "temperature": 0,
    "max_tokens": CALL_TOKENS,
    "messages": [{"role": "user", "content": RECORD}],
    "max_retries": 1,
}


class Twice(Person):
    """A person whose first age is refused: the client sends the answer back, and asks again."""

    @field_validator("age")
    @classmethod
    def once(cls, age: int) -> int:
        if not attempts:
            attempts.append(age)
            raise ValueError("count again")
        return age


attempts: list[int] = []


def plain() -> None:
    asked: Any = {**record, "max_tokens": TOKENS, "messages": [{"role": "user", "content": QUESTION}]}
    answer = by_schema.chat.completions.create(response_model=None, **asked)
    expect(answer.choices[0].message.content, "the answer is empty")


def streaming() -> None:
    seen = list(by_schema.chat.completions.create_partial(response_model=Person, **record))
    expect(len(seen) > 1 and seen[-1].name, f"partial objects: {seen}")


def multi_turn() -> None:
    for client in (by_schema, by_call):
        attempts.clear()
        client.chat.completions.create(response_model=Twice, **{**record, "max_retries": 2})
        expect(attempts, "it was not asked again")


def structured() -> None:
    person = by_schema.chat.completions.create(response_model=Person, **record)
    expect(isinstance(person, Person), f"no object: {person}")


def tools() -> None:
    person = by_call.chat.completions.create(response_model=Person, **record)
    expect(isinstance(person, Person), f"no object: {person}")


def errors() -> None:
    try:
        by_schema.chat.completions.create(response_model=Person, **{**record, "model": UNKNOWN})
    except Exception as error:
        expect("model_not_found" in str(error), f"another error: {error!r}")
        return
    raise AssertionError("an unknown model answered")


def routing() -> None:
    _, answer = by_schema.chat.completions.create_with_completion(
        response_model=Person, extra_body=ROUTING, **record
    )
    expect(answer.routing["active"] == ["math"], f"the answer: {answer}")


report(
    plain=plain,
    streaming=streaming,
    multi_turn=multi_turn,
    structured=structured,
    tools=tools,
    errors=errors,
    routing=routing,
)
