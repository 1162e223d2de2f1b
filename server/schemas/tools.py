"""Functions that a model may call, and calls that it made, as OpenAI has them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from brainstacks.engine.request import Grammar
from server.schemas.body import LIST, TEXT, WITHOUT_EFFECT, Body, Integer

MAX_TOOLS = 128

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
CallId = Annotated[str, Field(min_length=1, max_length=128)]


class Function(Body):
    """`strict` holds the arguments to the parameters also where a call is the model's own choice."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        default=None, description="JSON schema of the arguments; none when left out"
    )
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class Named(Body):
    name: FunctionName


class NamedTool(Body):
    """The one function that is to be called."""

    type: Literal["function"]
    function: Named


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(TEXT)] | Annotated[NamedTool, Tag(LIST)],
    Discriminator(
        lambda value: TEXT if isinstance(value, str) else LIST,
        custom_error_type="tool_choice",
        custom_error_message="it is none, auto, required, or an object that names a function",
    ),
]


class Called(Body):
    name: FunctionName
    arguments: str = Field(description="JSON text of an object; none where it is empty")

    def decoded(self) -> dict[str, Any]:
        """The arguments. Raises ValueError, RecursionError: they are no JSON object."""
        found = json.loads(self.arguments or "{}")
        if not isinstance(found, dict):
            raise ValueError("not an object")
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
        return found

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        try:
            self.decoded()
        except (ValueError, RecursionError) as error:
            yield "arguments", f"it is the text of a JSON object, or empty, and this is none ({error})"


class ToolCall(Body):
    """A call in an assistant's message, as the server returned it."""

    id: CallId
    type: Literal["function"] = "function"
    function: Called
    index: Annotated[Integer | None, WITHOUT_EFFECT] = None

    def decoded(self) -> dict[str, Any]:
        """As chat templates take it."""
        called = {"name": self.function.name, "arguments": self.function.decoded()}
        return {"id": self.id, "type": "function", "function": called}


def answered_once(turns: Iterable[tuple[str, str, bool]], parts: str) -> None:
    """Every call has an id of its own, and every result is the first of a call before it.

    Args:
        turns: in their order, the place of an id, the id, and whether a result has it (or a call).
        parts: what the turns are called.

    Raises:
        PydanticCustomError: with each place where that is broken.
    """
    made, answered = set[str](), set[str]()
    broken = []
    for place, call, is_result in turns:
        if not is_result and call in made:
            broken.append((place, "another call has this id"))
        elif is_result and call not in made:
            broken.append((place, "no call before it has this id"))
        elif is_result and call in answered:
            broken.append((place, "the call of this id has a result already"))
        (answered if is_result else made).add(call)
    if broken:
        raise PydanticCustomError("broken_rules", f"rules between {parts} are broken", {"broken": broken})


def broken_tool_rules(
    names: Sequence[str], choice: str | Named | None, grammar: Grammar | None, formats: str
) -> Iterator[tuple[str, str]]:
    """(field, sentence) for what does not fit together of functions, a choice and what the text has to be.

    Args:
        formats: the field that says what the text has to be, quoted.
    """
    if len(set(names)) < len(names):
        yield "tools", "two functions have one name"
    if isinstance(choice, Named) and choice.name not in names:
        yield "tool_choice", f"no tool is named {choice.name!r}"
    if choice == "required" and not names:
        yield "tool_choice", "'required' needs 'tools'"
    if names and choice != "none" and grammar is not None:
        yield "tools", f"beside {formats} or 'structured_outputs' no answer could be a call"
