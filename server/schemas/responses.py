"""Body of `POST /v1/responses`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic.json_schema import SkipJsonSchema

from brainstacks.engine.request import MAX_TOP_LOGPROBS, Grammar
from server.schemas.body import FUNCTION, LIST, OTHER, TEXT, WITHOUT_EFFECT, Body, Integer, text_or_list
from server.schemas.chat import ChatRequest
from server.schemas.items import Items, MessageItem, ReasoningItem, messages_of
from server.schemas.messages import ChatTemplated, Message
from server.schemas.sampling import Generation, Label
from server.schemas.structured import Name, json_grammar
from server.schemas.tools import (
    MAX_TOOLS,
    Function,
    Named,
    NamedTool,
    Tool,
    ToolChoice,
    broken_tool_rules,
)

LOGPROBS = "message.output_text.logprobs"


def _not_stored(value: object) -> object:
    raise ValueError("responses are not stored; leave it out, and send the whole conversation as 'input'")


Stored = Annotated[None, BeforeValidator(_not_stored)]
"""A field that refers to something that a server with a memory would have."""

Input = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[Items, Tag(LIST)],
    Discriminator(
        text_or_list,
        custom_error_type="input",
        custom_error_message="it is a text, or a list of items",
    ),
]


class FunctionTool(Function):
    type: Literal["function"]


class OtherTool(Body):
    """Refused by its type, and not by what else is in it."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["function"]


def _kind_of_tool(tool: object) -> str:
    return OTHER if isinstance(tool, dict) and tool.get("type") != "function" else FUNCTION


FunctionTools = Annotated[
    list[
        Annotated[
            Annotated[FunctionTool, Tag(FUNCTION)] | Annotated[SkipJsonSchema[OtherTool], Tag(OTHER)],
            Discriminator(_kind_of_tool),
        ]
    ],
    Field(max_length=MAX_TOOLS, fail_fast=True),
]


class NamedFunction(Named):
    """The one function that is to be called."""

    type: Literal["function"]


FunctionChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(TEXT)]
    | Annotated[NamedFunction, Tag(FUNCTION)]
    | Annotated[SkipJsonSchema[OtherTool], Tag(OTHER)],
    Discriminator(lambda choice: TEXT if isinstance(choice, str) else _kind_of_tool(choice)),
]


class TextFormat(Body):
    """Plain text, any JSON object, or JSON of a schema, which always holds, whatever `strict` is."""

    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    description: Annotated[str, Field(max_length=4096)] | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        for field, value in (("name", self.name), ("schema", self.schema_)):
            if (value is not None) != (self.type == "json_schema"):
                yield field, "it goes with type 'json_schema', which needs it"

    def grammar(self) -> Grammar | None:
        if self.type == "text":
            return None
        if self.schema_ is None:
            return json_grammar({"type": "object"}, "text.format")
        return json_grammar(self.schema_, "text.format.schema")


class TextOptions(Body):
    format: TextFormat | None = None
    verbosity: Annotated[Literal["medium"] | None, WITHOUT_EFFECT] = None


class Reasoning(Body):
    effort: Annotated[Literal["none"] | None, WITHOUT_EFFECT] = None
    summary: Annotated[Literal["auto", "concise", "detailed"] | None, WITHOUT_EFFECT] = None


class ResponseStreamOptions(Body):
    include_obfuscation: Annotated[bool | None, WITHOUT_EFFECT] = None


class ResponsesRequest(Generation, ChatTemplated):
    """Body of `POST /v1/responses`."""

    input: Input = Field(description="text, or a list of items: messages, calls, their results")
    instructions: str | None = Field(default=None, description="a system message in front of the input")
    max_output_tokens: Integer | None = Field(
        default=None, ge=1, le=2**31 - 1, description="the rest of the context when left out"
    )
    include: Annotated[
        list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None,
        Field(max_length=16),
    ] = None
    top_logprobs: Integer | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: FunctionTools | None = None
    tool_choice: FunctionChoice | None = Field(default=None, description="auto when left out")
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    truncation: Literal["disabled"] | None = None
    stream_options: ResponseStreamOptions | None = None
    previous_response_id: Stored = None
    conversation: Stored = None
    reasoning: Reasoning | None = None
    background: Annotated[Literal[False] | None, WITHOUT_EFFECT] = None
    max_tool_calls: Annotated[Integer | None, WITHOUT_EFFECT] = Field(
        default=None, ge=1, description="of calls that a server makes; this one makes none"
    )
    prompt_cache_retention: Annotated[Label | None, WITHOUT_EFFECT] = None

    @property
    def with_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    def grammar(self) -> Grammar | None:
        held = self.text.format.grammar() if self.text and self.text.format else None
        return held or super().grammar()

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        yield from super().broken_rules()
        if self.stream_options is not None and not self.stream:
            yield "stream_options", "it needs 'stream': true"
        if self.structured_outputs and self.text and self.text.format and self.text.format.type != "text":
            yield "structured_outputs", "it and 'text.format' are one thing; send one of them"
        names = [one.name for one in self._functions()]
        chosen = self.tool_choice if isinstance(self.tool_choice, (str, Named)) else None
        yield from broken_tool_rules(names, chosen, self.grammar(), "'text.format'")
        items = self.input if isinstance(self.input, list) else []
        if items and all(isinstance(item, ReasoningItem) for item in items):
            yield "input", "reasoning is not told to a model; send a message too"

    def ignored(self) -> list[str]:
        unseen = [f"include.{name}" for name in self.include or () if name != LOGPROBS]
        return sorted({*super().ignored(), *unseen})

    def chat(self) -> ChatRequest:
        """The same as a conversation; without `text.format`, whose errors have to name it."""
        shared = (*Generation.model_fields, *ChatTemplated.model_fields)
        told = [] if self.instructions is None else [Message(role="system", content=self.instructions)]
        said = [MessageItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        choice: ToolChoice | None = None
        if isinstance(self.tool_choice, NamedFunction):
            choice = NamedTool(type="function", function=Named(name=self.tool_choice.name))
        elif isinstance(self.tool_choice, str):
            choice = self.tool_choice
        return ChatRequest(
            **{name: getattr(self, name) for name in shared},
            messages=[*told, *messages_of(said)],
            max_tokens=self.max_output_tokens,
            logprobs=self.with_logprobs,
            top_logprobs=self.top_logprobs if self.with_logprobs else None,
            tools=[Tool(type="function", function=one) for one in self._functions()],
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls,
        )

    def _functions(self) -> list[Function]:
        found = [tool for tool in self.tools or () if isinstance(tool, FunctionTool)]
        return [Function(**tool.model_dump(exclude={"type"})) for tool in found]
