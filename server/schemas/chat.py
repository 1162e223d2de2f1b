"""Body of `POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from brainstacks.engine.request import MAX_TOP_LOGPROBS
from server.schemas.body import WITHOUT_EFFECT, Integer
from server.schemas.messages import ChatTemplated, Messages
from server.schemas.sampling import Sampling


class ChatRequest(Sampling, ChatTemplated):
    """Body of `POST /v1/chat/completions`."""

    messages: Messages
    max_tokens: Integer | None = Field(
        default=None, ge=1, le=2**31 - 1, description="the rest of the context when left out"
    )
    max_completion_tokens: Integer | None = Field(default=None, ge=1, le=2**31 - 1)
    logprobs: bool | None = None
    top_logprobs: Integer | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    modalities: Annotated[list[Literal["text"]] | None, WITHOUT_EFFECT] = Field(
        default=None, min_length=1, max_length=1
    )
    prediction: Annotated[dict[str, Any] | None, WITHOUT_EFFECT] = None
    verbosity: Annotated[Literal["medium"] | None, WITHOUT_EFFECT] = None
    reasoning_effort: Annotated[Literal["none"] | None, WITHOUT_EFFECT] = None

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        yield from super().broken_rules()
        if self.top_logprobs is not None and not self.logprobs:
            yield "top_logprobs", "it needs 'logprobs': true"
