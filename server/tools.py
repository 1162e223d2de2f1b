"""Functions that a model may call: how it is told of them, what holds it to a call, and what it called.

One format for every base: a system text lists the functions, and a call is an answer that is one JSON object,
`{"name": ..., "arguments": {...}}`. An answer makes at most one call.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from brainstacks.engine.request import Grammar
from server.schemas.messages import Message
from server.schemas.tools import Function, NamedTool, Tool

NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


class Tools:
    """The functions of one request, one or more.

    Args:
        choice: `auto`, `required`, or the name of the one that is to be called.
    """

    def __init__(self, functions: Sequence[Function], choice: str) -> None:
        self._functions = {one.name: one for one in functions}
        self._choice = choice

    @property
    def grammar(self) -> Grammar | None:
        """What the answer has to be: a call, where one is asked for."""
        if self._choice == "auto":
            return None
        names = [self._choice] if self._choice in self._functions else list(self._functions)
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": name},
                    "arguments": self._functions[name].parameters or NO_ARGUMENTS,
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name in names
        ]
        return Grammar("json", json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls}), "tools")

    def conversation(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """`plain` messages, with the functions in front."""
        first, *rest = plain(messages)
        if first["role"] == "system":
            return [{**first, "content": f"{first['content']}\n\n{self._told()}"}, *rest]
        return [{"role": "system", "content": self._told()}, first, *rest]

    def called(self, text: str) -> list[dict[str, Any]]:
        """The calls that an answer makes; none where it is anything but a call of one of the functions."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return []
        if not isinstance(found, dict) or found.keys() != {"name", "arguments"}:
            return []
        name, arguments = found["name"], found["arguments"]
        if not isinstance(name, str) or name not in self._functions or not isinstance(arguments, dict):
            return []
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        return [{"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}]

    def may_call(self, text: str) -> bool:
        """Whether what an answer begins with may still become a call."""
        return text.strip()[:1] in ("", "{")

    def _told(self) -> str:
        lines = [
            json.dumps(one.model_dump(exclude_none=True, exclude={"strict"}), ensure_ascii=False)
            for one in self._functions.values()
        ]
        how = 'To call one, answer with one JSON object and nothing else: {"name": ..., "arguments": {...}}'
        return "\n".join(["You can call these functions:", *lines, how])


def tools_of(tools: Sequence[Tool] | None, choice: str | NamedTool | None) -> Tools | None:
    """What a request asks for; None where nothing can be called."""
    if not tools or choice == "none":
        return None
    named = choice.function.name if isinstance(choice, NamedTool) else choice
    return Tools([one.function for one in tools], named or "auto")


def plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    """As any chat template takes them: calls are the text that they were, results come from the user."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls or ()}
    found = []
    for message in messages:
        one = message.plain()
        if message.tool_calls:
            calls = [
                f'{{"name": {json.dumps(call.function.name)}, "arguments": {call.function.arguments}}}'
                for call in message.tool_calls
            ]
            one["content"] = "\n".join([*([one["content"]] if one["content"] else []), *calls])
        if message.role == "tool":
            name = names.get(message.tool_call_id or "", "the function")
            one = {"role": "user", "content": f"Result of {name}: {one['content']}"}
        found.append(one)
    return found
