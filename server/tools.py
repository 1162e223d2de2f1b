"""The functions that an answer may call: how the model is told of them, and what holds it to a call."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from brainstacks.engine.request import Grammar, SamplingParams
from server.schemas.messages import Message
from server.schemas.tools import Function, NamedTool, Tool
from server.tool_calls import CallReader
from server.tool_format import ToolFormat

MAX_CALLS = 16
"""Most calls that one answer is held to: a small model that may make any number makes no end of them."""

NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
ANY_ARGUMENTS: Mapping[str, Any] = {"type": "object"}

_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""llguidance's: JSON with the white space that chat templates write."""


class Tools:
    """The functions of one request, one or more.

    Args:
        choice: `auto`, `required`, or the one that is to be called, once.
        parallel: whether an answer may make several calls.
    """

    def __init__(
        self,
        form: ToolFormat,
        functions: Sequence[Function],
        choice: str | NamedTool,
        *,
        parallel: bool = True,
    ) -> None:
        self._form = form
        self._functions = {one.name: one for one in functions}
        self._auto = choice == "auto"
        self._named = choice.function.name if isinstance(choice, NamedTool) else None
        self._most = MAX_CALLS if parallel and form.several and self._named is None else 1

    def held(self, sampling: SamplingParams) -> SamplingParams:
        """`sampling`, held to this grammar, and to a text in which calls can be found."""
        skips = sampling.skip_special_tokens and not self._form.special
        return replace(sampling, grammar=self.grammar or sampling.grammar, skip_special_tokens=skips)

    @property
    def grammar(self) -> Grammar | None:
        """What the answer has to be: calls, where they are asked for; with `auto` a text, or calls as the
        request wants them. None where it says nothing of that."""
        if self._auto and self._most > 1 and not any(one.strict for one in self._functions.values()):
            return None
        return Grammar("grammar", "\n".join(self._lark()), "tools")

    def reader(self) -> CallReader:
        """Of one answer."""
        return CallReader(self._form, self._functions, self._most)

    def told(self) -> list[dict[str, Any]] | None:
        """The functions, for the chat template; None where `conversation` tells of them."""
        if not self._form.in_template:
            return None
        return [{"type": "function", "function": one} for one in self._described()]

    def conversation(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """`conversation` of these messages, with the functions in front where the chat template has none."""
        first, *rest = conversation(self._form, messages)
        if self._form.in_template:
            return [first, *rest]
        one = self._form.one("...", "{...}").replace('"..."', "...")
        how = f"To call one, answer with one JSON object and nothing else: {one}"
        if self._most > 1:
            how += "\nTo call several, answer with one such object a line."
        lines = [json.dumps(one, ensure_ascii=False) for one in self._described()]
        told = "\n".join(["You can call these functions:", *lines, how])
        if first["role"] == "system":
            return [{**first, "content": f"{first['content']}\n\n{told}"}, *rest]
        return [{"role": "system", "content": told}, first, *rest]

    def _described(self) -> list[dict[str, Any]]:
        return [
            {
                **one.model_dump(exclude_none=True, exclude={"strict"}),
                "parameters": one.parameters or NO_ARGUMENTS,
            }
            for one in self._functions.values()
        ]

    def _lark(self) -> Iterator[str]:
        """A grammar for llguidance. With `auto`, calls may follow a text where they have a marker."""
        form = self._form
        mark, first = self._literal(form.marker), self._literal(form.first.removeprefix(form.marker))
        between = self._literal(form.between) if form.in_one_row else f"{self._literal(form.between)} {mark}"
        more = f"({between} call){{0,{self._most - 1}}}" if self._most > 1 else ""
        row = f"{first} call {more} {self._literal(form.last)}"
        if not self._auto:
            yield f"start: {mark} {row}"
        elif not form.marker:
            yield f"start: TEXT | {row}"
            yield r"TEXT: /(\s*[^\s{](?s:.)*)?/"
        elif form.marker in form.token_ids:
            yield f"start: text ({mark} {row})?"
            yield f"text: <[^{form.token_ids[form.marker]}]>*"  # also tokens that mark something else
        else:
            yield f"start: TEXT | marked {row}"
            yield f"marked[lazy]: TEXT {mark}"
            yield "TEXT: /(?s:.*)/"
        names = list(self._functions) if self._named is None else [self._named]
        yield "call: " + " | ".join(f"call_{at}" for at in range(len(names)))
        for at, name in enumerate(names):
            one = self._functions[name]
            loose = self._auto and not one.strict
            schema = {**(ANY_ARGUMENTS if loose else one.parameters or NO_ARGUMENTS), "x-guidance": _JSON}
            head = self._literal(form.head(name).removeprefix(form.marker))
            yield f"call_{at}: {head} %json {json.dumps(schema)} {self._literal(form.after)}"

    def _literal(self, text: str) -> str:
        """`text` in Lark's notation, with a token wherever the base has one."""
        return " ".join(
            f"<[{self._form.token_ids[part]}]>" if part in self._form.token_ids else json.dumps(part)
            for part in self._form.parts(text)
        )


def tools_of(
    form: ToolFormat,
    tools: Sequence[Tool] | None,
    choice: str | NamedTool | None,
    *,
    parallel: bool | None = None,
) -> Tools | None:
    """What a request asks for; None where nothing can be called."""
    if not tools or choice == "none":
        return None
    return Tools(form, [one.function for one in tools], choice or "auto", parallel=parallel is not False)


def conversation(form: ToolFormat, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """As the base's chat template takes it. Where it has no calls, they are the text that they were, and
    results that follow each other come from the user, in one message."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls or ()}
    found: list[dict[str, Any]] = []
    after_result = False
    for message in messages:
        one: dict[str, Any] = message.plain()
        result = message.role == "tool"
        if form.in_template:
            if message.tool_calls:
                one["tool_calls"] = [call.decoded() for call in message.tool_calls]
            if result:
                one |= {"tool_call_id": message.tool_call_id, "name": names[message.tool_call_id or ""]}
        elif message.tool_calls:
            calls = [
                form.one(call.function.name, call.function.arguments or "{}") for call in message.tool_calls
            ]
            one["content"] = form.between.join([*([one["content"]] if one["content"] else []), *calls])
        elif result:
            told = f"Result of {names[message.tool_call_id or '']}: {one['content']}"
            if after_result:
                found[-1]["content"] += f"\n{told}"
                continue
            one = {"role": "user", "content": told}
        found.append(one)
        after_result = result
    return found
