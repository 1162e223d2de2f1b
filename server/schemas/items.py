"""Items of the Responses API: what was said, what the server called, what that gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag
from pydantic.json_schema import SkipJsonSchema

from server.schemas.body import (
    CALL,
    LIST,
    MESSAGE,
    OTHER,
    REASONING,
    RESULT,
    TEXT,
    WITHOUT_EFFECT,
    Body,
    text_or_list,
)
from server.schemas.messages import Message
from server.schemas.tools import Called, CallId, ToolCall, answered_once

MAX_ITEMS = 4095
"""With `instructions` as many as chat takes messages."""

Status = Literal["in_progress", "completed", "incomplete"]


class Part(Body):
    """Text that a client said, or that the server answered and the client sends back as it was."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any] | None, WITHOUT_EFFECT] = None
    logprobs: Annotated[list[Any] | None, WITHOUT_EFFECT] = None
    parsed: Annotated[Any, WITHOUT_EFFECT] = Field(default=None, description="openai-python's own")


Texts = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[list[Part], Field(fail_fast=True), Tag(LIST)],
    Discriminator(
        text_or_list,
        custom_error_type="content",
        custom_error_message="it is a text, or a list of input_text and output_text parts",
    ),
]


class Item(Body):
    """What the items of a conversation share."""

    id: Annotated[str | None, WITHOUT_EFFECT] = None
    status: Annotated[Status | None, WITHOUT_EFFECT] = None


class MessageItem(Item):
    """What one side said. `type` may be left out."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Texts
    phase: Annotated[Literal["commentary", "final_answer"] | None, WITHOUT_EFFECT] = None


class CallItem(Item, Called):
    """A call that the server answered with."""

    type: Literal["function_call"]
    call_id: CallId
    parsed_arguments: Annotated[Any, WITHOUT_EFFECT] = Field(default=None, description="openai-python's own")


class ResultItem(Item):
    """What a called function gave."""

    type: Literal["function_call_output"]
    call_id: CallId = Field(description="of the call whose result this is")
    output: Texts


class ReasoningItem(Item):
    """Another server's; this one makes none, and its models are not told of them."""

    type: Literal["reasoning"]
    summary: Annotated[list[Any] | None, WITHOUT_EFFECT] = None
    content: Annotated[list[Any] | None, WITHOUT_EFFECT] = None
    encrypted_content: Annotated[str | None, WITHOUT_EFFECT] = None


class OtherItem(Body):
    """Refused by its type, and not by what else is in it."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["message", "function_call", "function_call_output", "reasoning"]


def _kind_of_item(item: object) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else "message"
    kinds = {
        "message": MESSAGE,
        "function_call": CALL,
        "function_call_output": RESULT,
        "reasoning": REASONING,
    }
    return kinds.get(kind, OTHER) if isinstance(kind, str) else OTHER


def _one_result_a_call(items: list[Body]) -> list[Body]:
    calls = ((at, item) for at, item in enumerate(items) if isinstance(item, (CallItem, ResultItem)))
    answered_once(((f"{at}.call_id", it.call_id, isinstance(it, ResultItem)) for at, it in calls), "items")
    return items


Items = Annotated[
    list[
        Annotated[
            Annotated[MessageItem, Tag(MESSAGE)]
            | Annotated[CallItem, Tag(CALL)]
            | Annotated[ResultItem, Tag(RESULT)]
            | Annotated[ReasoningItem, Tag(REASONING)]
            | Annotated[SkipJsonSchema[OtherItem], Tag(OTHER)],
            Discriminator(_kind_of_item),
        ]
    ],
    Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True),
    AfterValidator(_one_result_a_call),
]


def messages_of(items: Sequence[Body]) -> list[Message]:
    """As a conversation of chat: calls belong to the assistant's message that they follow."""
    messages: list[Message] = []
    for item in items:
        if isinstance(item, MessageItem):
            messages.append(Message(role=item.role, content=_joined(item.content)))
        elif isinstance(item, CallItem):
            if not messages or messages[-1].role != "assistant":
                messages.append(Message(role="assistant", tool_calls=[]))
            called = Called(name=item.name, arguments=item.arguments)
            calls = messages[-1].tool_calls = messages[-1].tool_calls or []
            calls.append(ToolCall(id=item.call_id, function=called))
        elif isinstance(item, ResultItem):
            messages.append(Message(role="tool", content=_joined(item.output), tool_call_id=item.call_id))
    return messages


def _joined(texts: str | list[Part]) -> str:
    return texts if isinstance(texts, str) else "".join(part.text for part in texts)
