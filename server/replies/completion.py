"""Replies of `POST /v1/completions`, and what a chat completion has in common with them."""

from __future__ import annotations

from typing import Literal

from pydantic import MISSING

from brainstacks.engine.request import FinishReason
from server.replies.reply import Reply
from server.replies.routing import Routing


class Usage(Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class PromptLogprob(Reply):
    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""Per token an object of token id -> what is known of it; null first."""


class Envelope(Reply):
    """What every (chunk of a) completion starts with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class CompletionLogprobs(Reply):
    """Four arrays of one length: nats per token, and where each starts in the text, in characters."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionPart(Reply):
    """Of a choice that is streamed."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    token_ids: list[int] | MISSING = MISSING
    prompt_token_ids: list[int] | MISSING = MISSING
    routing: Routing | MISSING = MISSING


class CompletionChoice(CompletionPart):
    finish_reason: FinishReason
    prompt_logprobs: PromptLogprobs | MISSING = MISSING


class Completion(Envelope):
    """Reply of `POST /v1/completions`."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage
    routing: Routing


class CompletionChunk(Envelope):
    """Event of a stream; the first and the last have `routing`."""

    object: Literal["text_completion"]
    choices: list[CompletionPart]
    usage: Usage | MISSING | None = MISSING
    routing: Routing | MISSING = MISSING
