"""How an answer calls functions: as the base's chat template writes calls, or in a way that any base can."""

from __future__ import annotations

import logging
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from brainstacks.engine.interface import Tokenizer
from brainstacks.errors import InvalidRequest

logger = logging.getLogger("brainstacks.server")

_NAME = "NAME"
_TOLD = "probed by its description"


@dataclass(frozen=True)
class ToolFormat:
    """The calls of an answer: `first`, the calls with `between` between them, `last`. A call is `before`, in
    which NAME stands for the function's name, its arguments as a JSON object, and `after`.

    Attributes:
        tokens: parts of these texts that a base may have as one token each. The first of them begins calls
            and nothing else; where there are none, an answer that makes calls is nothing but calls.
        token_ids: those of them that this base has.
        several: whether an answer can make more than one call.
        in_template: the chat template tells of functions, calls and results; otherwise plain texts do.
        special: some of the tokens are left out of a text unless it keeps special tokens.
    """

    name: str
    before: str
    after: str
    first: str = ""
    between: str = ""
    last: str = ""
    tokens: tuple[str, ...] = ()
    token_ids: Mapping[str, int] = field(default_factory=dict)
    several: bool = True
    in_template: bool = True
    special: bool = False

    @property
    def marker(self) -> str:
        """What begins calls; "" where an answer that makes calls is nothing else."""
        return self.tokens[0] if self.tokens else ""

    @property
    def in_one_row(self) -> bool:
        """One beginning for all calls of an answer; otherwise each has a marker."""
        return not self.marker or self.marker in self.first

    @property
    def follows_marker(self) -> str:
        """What the first character, other than white space, behind the marker of a call can be."""
        found = squeezed(f"{self.first}{self.before}")[len(self.marker)]
        return f"{string.ascii_letters}{string.digits}_.-" if found == _NAME[0] else found

    @cached_property
    def begins(self) -> re.Pattern[str]:
        return re.compile(_loosely(self.first))

    @cached_property
    def calls(self) -> re.Pattern[str]:
        """A call up to its arguments, with a group `name`."""
        pattern = _loosely(self.before).replace(_NAME, r"(?P<name>[a-zA-Z0-9_.-]{1,64})")
        # Models that saw functions as `{"type": "function", ...}` write calls like that.
        opened, typed = _loosely("{"), _loosely('{"type": "function",')
        return re.compile(pattern.replace(opened, f"(?:{typed}|{opened})", 1))

    @cached_property
    def ends(self) -> re.Pattern[str]:
        return re.compile(_loosely(self.after))

    @cached_property
    def goes_on(self) -> re.Pattern[str]:
        return re.compile(_loosely(self.between))

    @cached_property
    def closes(self) -> re.Pattern[str]:
        return re.compile(_loosely(self.last))

    @cached_property
    def cut_ends(self) -> frozenset[str]:
        """What is left of the end where an answer stops within it, less white space."""
        end = squeezed(f"{self.after}{self.last}")
        return frozenset(end[:n] for n in range(1, len(end) + 1))

    def parts(self, text: str) -> list[str]:
        """`text`, cut around what may be one token."""
        pattern = "|".join(map(re.escape, self.tokens))
        return [part for part in (re.split(f"({pattern})", text) if pattern else [text]) if part]

    def head(self, name: str) -> str:
        return self.before.replace(_NAME, name)

    def one(self, name: str, arguments: str) -> str:
        """An answer that is one call."""
        return f"{self.first}{self.head(name)}{arguments}{self.after}{self.last}"


GENERIC = ToolFormat(
    "generic", before='{"name": "NAME", "arguments": ', after="}", between="\n", in_template=False
)

_MISTRAL = ToolFormat(
    "mistral",
    before='{"name": "NAME", "arguments": ',
    after="}",
    between=", ",
    last="]",
    tokens=("[TOOL_CALLS]",),
)

IN_TEMPLATES = (
    ToolFormat(
        "hermes",
        before='<tool_call>\n{"name": "NAME", "arguments": ',
        after="}\n</tool_call>",
        between="\n",
        tokens=("<tool_call>", "</tool_call>"),
    ),
    replace(_MISTRAL, first="[TOOL_CALLS] ["),
    replace(_MISTRAL, first="[TOOL_CALLS]["),
    ToolFormat("mistral-args", before="[TOOL_CALLS]NAME[ARGS]", after="", tokens=("[TOOL_CALLS]", "[ARGS]")),
    ToolFormat("llama3", before='{"name": "NAME", "parameters": ', after="}", between="; "),
)
"""Hermes' is Qwen's too. A template has that of them in which it writes a call."""


def format_of(tokenizer: Tokenizer) -> ToolFormat:
    """The format in which the base's chat template writes a call; the generic one where that is unknown."""
    shown = _shown(tokenizer, 1)
    for one in IN_TEMPLATES:
        if _TOLD in shown and f'{one.first}{one.head("probe")}{{"x": 1}}' in shown:
            ids = {text: found for text in one.tokens if (found := tokenizer.added_token(text)) is not None}
            hidden = any(not tokenizer.decode([i], skip_special_tokens=True) for i in ids.values())
            logger.info("the base's chat template has functions; calls are in its format, %s", one.name)
            return replace(one, token_ids=ids, special=hidden, several=bool(_shown(tokenizer, 2)))
    logger.info("the base's chat template writes no call in a known format; functions are told of in a text")
    return GENERIC


def _shown(tokenizer: Tokenizer, calls: int) -> str:
    """What the chat template makes of an answer with so many calls; "" where it refuses it."""
    called = {"name": "probe", "arguments": {"x": 1}}
    # Nine letters and digits: there are templates that take no other id.
    made = [{"id": f"callprob{at}", "type": "function", "function": called} for at in range(calls)]
    parameters: dict[str, Any] = {"type": "object", "properties": {"x": {"type": "integer"}}}
    function = {"name": "probe", "description": _TOLD, "parameters": parameters}
    try:
        return tokenizer.render_chat(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": made}],
            tools=[{"type": "function", "function": function}],
        )
    except InvalidRequest:
        return ""


def squeezed(text: str) -> str:
    """Without white space."""
    return "".join(text.split())


def _loosely(text: str) -> str:
    """A pattern of `text` with any white space, or none, around its punctuation, in linear time."""
    parts = [rf"\s*+{re.escape(c)}\s*+" if c in "{}[]:,;" else re.escape(c) for c in text if not c.isspace()]
    return "".join(parts) or r"\s*+"
