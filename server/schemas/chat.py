"""Body of `POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from brainstacks.engine.request import MAX_TOP_LOGPROBS
from server.schemas.body import WITHOUT_EFFECT, Integer
from server.schemas.messages import ChatTemplated, Messages
from server.schemas.sampling import Sampling
from server.schemas.tools import MAX_TOOLS, NamedTool, Tool, ToolChoice, broken_tool_rules


class ChatRequest(Sampling, ChatTemplated):
    """Body of `POST /v1/chat/completions`."""

    messages: Messages
    max_tokens: Integer | None = Field(
        default=None, ge=1, le=2**31 - 1, description="the rest of the context when left out"
    )
    max_completion_tokens: Integer | None = Field(default=None, ge=1, le=2**31 - 1)
    logprobs: bool | None = None
    top_logprobs: Integer | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = Field(default=None, description="auto when left out")
    parallel_tool_calls: bool | None = Field(
        default=None, description="false holds an answer to one call at most; true when left out"
    )
    modalities: Annotated[list[Literal["text"]] | None, WITHOUT_EFFECT] = Field(
        default=None, min_length=1, max_length=1
    )
    prediction: Annotated[dict[str, Any] | None, WITHOUT_EFFECT] = None
    verbosity: Annotated[Literal["medium"] | None, WITHOUT_EFFECT] = None
    reasoning_effort: Annotated[Literal["none"] | None, WITHOUT_EFFECT] = None

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        yield from super().broken_rules()
        names = [one.function.name for one in self.tools or ()]
        chosen = self.tool_choice.function if isinstance(self.tool_choice, NamedTool) else self.tool_choice
        yield from broken_tool_rules(names, chosen, self.grammar(), "'response_format'")
        if self.top_logprobs is not None and not self.logprobs:
            yield "top_logprobs", "it needs 'logprobs': true"
