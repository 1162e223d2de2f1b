"""What a client may ask its text to be: OpenAI's `response_format`, vLLM's `structured_outputs`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from brainstacks.engine.request import MAX_GRAMMAR, Grammar
from server.schemas.body import Body

MAX_CHOICES = 1024

Source = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class JsonSchema(Body):
    """`strict` has no effect: the schema always holds, and is refused where it cannot."""

    name: Name
    description: Annotated[str, Field(max_length=4096)] | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's: plain text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            yield "json_schema", "it and type 'json_schema' go together; send both or neither"

    def grammar(self) -> Grammar | None:
        if self.type == "text":
            return None
        if self.json_schema is None or self.json_schema.schema_ is None:
            return json_grammar({"type": "object"}, "response_format")
        return json_grammar(self.json_schema.schema_, "response_format.json_schema.schema")


class StructuredOutputs(Body):
    """vLLM's: exactly one of these."""

    json_: Any = Field(default=None, alias="json", description="a JSON schema, as an object or as its text")
    regex: Source | None = None
    choice: Annotated[list[Annotated[str, Field(max_length=MAX_GRAMMAR)]], Field(
        min_length=1, max_length=MAX_CHOICES
    )] | None = None  # fmt: skip
    grammar_: Source | None = Field(default=None, alias="grammar", description="in Lark's notation or GBNF")

    @field_validator("json_")
    @classmethod
    def _schema(cls, schema: object) -> object:
        if isinstance(schema, str):
            if len(schema) > MAX_GRAMMAR:
                raise ValueError(f"its text has {len(schema)} characters; at most {MAX_GRAMMAR} are read")
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"its text is not JSON: {error}") from None
        if schema is not None and not isinstance(schema, dict):
            raise ValueError("it is a JSON schema, as an object or as its text")
        return schema

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        sent = [name for name in ("json_", "regex", "choice", "grammar_") if getattr(self, name) is not None]
        if len(sent) != 1:
            yield (
                (sent or ["json"])[0].rstrip("_"),
                "send exactly one of 'json', 'regex', 'choice', 'grammar'",
            )

    def grammar(self) -> Grammar:
        if self.json_ is not None:
            return json_grammar(self.json_, "structured_outputs.json")
        if self.regex is not None:
            return Grammar("regex", self.regex, "structured_outputs.regex")
        if self.choice is not None:
            choices = json.dumps(self.choice, ensure_ascii=False)
            return Grammar("choice", choices, "structured_outputs.choice")
        return Grammar("grammar", self.grammar_ or "", "structured_outputs.grammar")


def json_grammar(schema: dict[str, Any], param: str) -> Grammar:
    """Of JSON that `schema` describes."""
    return Grammar("json", json.dumps(schema, ensure_ascii=False), param)
