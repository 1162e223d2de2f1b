"""Reply of `POST /v1/attribution`."""

from __future__ import annotations

from typing import Literal

from server.replies.reply import Reply
from server.replies.routing import Routing


class Logprobs(Reply):
    """Log-probabilities (nats) under the base, the composition, and that without each active domain."""

    base: float
    composed: float
    without: dict[str, float]


class AttributedToken(Logprobs):
    token_id: int
    text: str


class Attribution(Reply):
    """Reply of `POST /v1/attribution`."""

    object: Literal["attribution"]
    model: str
    prompt_tokens: int
    tokens: list[AttributedToken]
    sums: Logprobs
    routing: Routing
