"""Replies of `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Literal

from pydantic import MISSING

from brainstacks.engine.request import FinishReason
from server.replies.completion import Envelope, PromptLogprobs, Usage
from server.replies.reply import Reply
from server.replies.routing import Routing


class TopLogprob(Reply):
    """`bytes` are the token's exact ones, of which its text may show but a part."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    content: list[TokenLogprob]
    refusal: None


class CalledFunction(Reply):
    """`arguments` is JSON text."""

    name: str
    arguments: str


class Call(Reply):
    id: str
    type: Literal["function"]
    function: CalledFunction


class StreamedCall(Call):
    index: int


class AssistantMessage(Reply):
    role: Literal["assistant"]
    content: str | None
    tool_calls: list[Call] | MISSING = MISSING
    refusal: None


class Delta(Reply):
    role: Literal["assistant"] | MISSING = MISSING
    content: str | MISSING = MISSING
    tool_calls: list[StreamedCall] | MISSING = MISSING


class ChatChoice(Reply):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | Literal["tool_calls"]
    stop_reason: str | int | None
    token_ids: list[int] | MISSING = MISSING


class ChatPart(Reply):
    """Of a choice that is streamed."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | Literal["tool_calls"] | None
    stop_reason: str | int | MISSING | None = MISSING
    token_ids: list[int] | MISSING = MISSING


class ChatCompletion(Envelope):
    """Reply of `POST /v1/chat/completions`."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | MISSING = MISSING
    prompt_token_ids: list[int] | MISSING = MISSING
    routing: Routing


class ChatChunk(Envelope):
    """Event of a stream; the first and the last have `routing`."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatPart]
    usage: Usage | MISSING | None = MISSING
    prompt_token_ids: list[int] | MISSING = MISSING
    routing: Routing | MISSING = MISSING
