"""Conversations: messages, and how the base's chat template turns them into a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from server.schemas.body import LIST, TEXT, WITHOUT_EFFECT, Body, text_or_list
from server.schemas.tools import MAX_TOOLS, CallId, ToolCall, answered_once

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\s<|\\/>]+$")]  # OpenAI's rule
# Those without effect go into a header.
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]


class TextPart(Body):
    type: Literal["text"]
    text: str
    cache_control: Annotated[dict[str, Any] | None, WITHOUT_EFFECT] = None


Content = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[list[TextPart], Field(fail_fast=True), Tag(LIST)],
    Discriminator(
        text_or_list,
        custom_error_type="content",
        custom_error_message="it is a text, or a list of text parts",
    ),
]


class Message(Body):
    """One message of a conversation; text only. An assistant's is taken as the server returned it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = Field(default=None, description="an assistant's may be null, which is empty")
    name: Name | None = Field(default=None, description="given to the chat template")
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_call_id: CallId | None = Field(default=None, description="of the call whose result this is")
    reasoning_content: Annotated[str | None, WITHOUT_EFFECT] = None
    annotations: Annotated[list[Any] | None, WITHOUT_EFFECT] = None
    provider_specific_fields: Annotated[dict[str, Any] | None, WITHOUT_EFFECT] = Field(
        default=None, description="what litellm kept of another server's answer"
    )

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        if self.content is None and self.role != "assistant":
            yield "content", f"a message of the role {self.role!r} needs it"
        if (self.tool_call_id is not None) != (self.role == "tool"):
            yield "tool_call_id", "it goes with the role 'tool', which needs it"
        if self.tool_calls and self.role != "assistant":
            yield "tool_calls", f"an assistant makes them, not {self.role!r}"

    def plain(self) -> dict[str, str]:
        """As a chat template takes it. `developer` is OpenAI's newer name of `system`."""
        content = self.content or ""
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        named = {} if self.name is None else {"name": self.name}
        return {"role": "system" if self.role == "developer" else self.role, "content": content, **named}


def _one_result_a_call(messages: list[Message]) -> list[Message]:
    answered_once(_calls_and_results(messages), "messages")
    return messages


def _calls_and_results(messages: list[Message]) -> Iterator[tuple[str, str, bool]]:
    for at, message in enumerate(messages):
        if message.tool_call_id is not None:
            yield f"{at}.tool_call_id", message.tool_call_id, True
        for number, call in enumerate(message.tool_calls or ()):
            yield f"{at}.tool_calls.{number}.id", call.id, False


Messages = Annotated[
    list[Message], Field(min_length=1, max_length=4096, fail_fast=True), AfterValidator(_one_result_a_call)
]


class ChatTemplated(Body):
    """How messages become a prompt, as vLLM has it."""

    add_generation_prompt: bool | None = Field(
        default=None, description="true when left out; false with continue_final_message"
    )
    continue_final_message: bool | None = Field(
        default=None, description="the last message is not ended, and the answer goes on in it"
    )
    add_special_tokens: bool | None = Field(
        default=None, description="the base's own, such as BOS, around what the chat template gives"
    )
    chat_template_kwargs: dict[Variable, Any] | None = Field(
        default=None, max_length=32, description="variables of the chat template"
    )

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        yield from super().broken_rules()
        if self.continue_final_message and self.add_generation_prompt:
            yield (
                "continue_final_message",
                "it goes on in the last message, 'add_generation_prompt' begins a new one; send one of them",
            )

    def template_options(self) -> dict[str, Any]:
        """Keyword arguments of `Tokenizer.encode_chat`."""
        return {
            "add_generation_prompt": self.add_generation_prompt is not False,
            "continue_final_message": bool(self.continue_final_message),
            "add_special_tokens": bool(self.add_special_tokens),
            "template_kwargs": self.chat_template_kwargs or {},
        }
