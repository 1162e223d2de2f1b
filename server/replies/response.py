"""Replies of `POST /v1/responses`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import MISSING

from server.replies.chat import TokenLogprob
from server.replies.error import ErrorDetail
from server.replies.reply import Reply
from server.replies.routing import Routing

Growth = Literal["in_progress", "completed", "incomplete"]


class OutputText(Reply):
    type: Literal["output_text"]
    text: str
    annotations: list[dict[str, Any]]
    logprobs: list[TokenLogprob]


class OutputMessage(Reply):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Growth
    content: list[OutputText]


class FunctionCall(Reply):
    """`arguments` is JSON text."""

    id: str
    type: Literal["function_call"]
    status: Growth
    call_id: str
    name: str
    arguments: str


Item = OutputMessage | FunctionCall


class InputDetails(Reply):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Reply):
    reasoning_tokens: int


class ResponseUsage(Reply):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class FailedResponse(Reply):
    code: str
    message: str


class IncompleteDetails(Reply):
    reason: Literal["max_output_tokens"]


class ReasoningOptions(Reply):
    effort: None
    summary: None


class ResponseText(Reply):
    """`format` is what was asked for."""

    format: dict[str, Any]
    verbosity: Literal["medium"]


class Response(Reply):
    """Reply of `POST /v1/responses`, and what its events tell of: what was asked for, and what came of it."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: Literal[False]
    error: FailedResponse | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[Item]
    parallel_tool_calls: bool
    previous_response_id: None
    prompt_cache_key: str | None
    reasoning: ReasoningOptions
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float
    text: ResponseText
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None
    metadata: dict[str, Any]
    routing: Routing | MISSING = MISSING


class ResponseEvent(Reply):
    """Event of a stream, named by its `type`; which of the other fields it has follows from that."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "error",
    ]
    sequence_number: int
    response: Response | MISSING = MISSING
    output_index: int | MISSING = MISSING
    item: Item | MISSING = MISSING
    item_id: str | MISSING = MISSING
    content_index: int | MISSING = MISSING
    part: OutputText | MISSING = MISSING
    delta: str | MISSING = MISSING
    text: str | MISSING = MISSING
    arguments: str | MISSING = MISSING
    logprobs: list[TokenLogprob] | MISSING = MISSING
    code: str | MISSING | None = MISSING
    message: str | MISSING = MISSING
    param: str | MISSING | None = MISSING
    error: ErrorDetail | MISSING = MISSING
