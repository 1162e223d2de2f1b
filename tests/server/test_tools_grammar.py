"""Whatever a model chooses of what a request's tools allow is calls, and their arguments fit."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from brainstacks.engine.sampling.grammar import Grammars
from brainstacks.tokenizer import ChatTokenizer
from server.schemas.tools import Function, Named, NamedTool
from server.tool_calls import Call
from server.tool_format import format_of
from server.tools import Tools
from tests.server.tool_templates import TEMPLATES, tokenizer_with
from tests.tiny import END

BOOK: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "pattern": '^[A-ZÄÖ][a-z<>}"\\\\]{1,6}$'},
        "nights": {"type": "integer", "minimum": 1, "maximum": 30},
        "guests": {"type": "array", "items": {"$ref": "#/$defs/guest"}, "maxItems": 2},
    },
    "required": ["city", "nights", "guests"],
    "additionalProperties": False,
    "$defs": {"guest": {"enum": ["adult", "child", None]}},
}
FUNCTIONS = (Function(name="book", parameters=BOOK), Function(name="clock"))
SEEDS = range(6)


def fits(call: Call) -> bool:
    given = json.loads(call.arguments)
    if call.name == "clock":
        return bool(given == {})
    return (
        list(given) == ["city", "nights", "guests"]
        and re.fullmatch(r'[A-ZÄÖ][a-z<>}"\\]{1,6}', given["city"]) is not None
        and type(given["nights"]) is int
        and 1 <= given["nights"] <= 30
        and len(given["guests"]) <= 2
        and set(given["guests"]) <= {"adult", "child", None}
    )


class Chooser:
    """Chooses tokens at random, of those that a grammar allows."""

    def __init__(self, template: str, *, tokens: bool = True) -> None:
        self.tokenizer = tokenizer_with(template, tokens=tokens)
        inner = self.tokenizer._tokenizer
        self._grammars = Grammars(inner, len(inner), [END])

    def answer(self, tools: Tools, seed: int, most: int = 3000) -> str:
        """A whole answer, which ends where it can."""
        grammar = tools.grammar
        assert grammar is not None
        matcher = self._grammars.compile(grammar).matcher(ignore_eos=False)
        choose, ids = random.Random(seed), list[int]()
        while len(ids) < most:
            allowed = [int(token) for token in matcher.mask().nonzero()]
            ids.append(choose.choice(allowed))
            if ids[-1] == END or matcher.advance(ids[-1]):
                break
        assert len(ids) < most, "it ends"
        return self.tokenizer.decode([token for token in ids if token != END])

    def says(self, tools: Tools, text: str) -> bool:
        """Whether `text` is a whole answer."""
        grammar = tools.grammar
        assert grammar is not None
        matcher = self._grammars.compile(grammar).matcher(ignore_eos=False)
        ids = self._ids(text)
        for at, token in enumerate(ids, start=1):
            if not matcher.mask()[token]:
                return False
            if matcher.advance(token):
                return at == len(ids)
        return bool(matcher.mask()[END])

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer._encode_template(text))


KINDS = [(name, False) for name in TEMPLATES] + [
    (n, True) for n in TEMPLATES if n not in ("generic", "llama3")
]
"""Formats, and whether the marks of calls are tokens of their own."""


@pytest.fixture(scope="module", params=KINDS, ids=str)
def chooser(request: pytest.FixtureRequest) -> Chooser:
    name, tokens = request.param
    return Chooser(TEMPLATES[name], tokens=tokens)


def tools(
    tokenizer: ChatTokenizer, choice: str, *, parallel: bool = True, strict: bool | None = None
) -> Tools:
    functions = [one.model_copy(update={"strict": strict}) for one in FUNCTIONS]
    named = [one.name for one in functions if one.name == choice]
    wanted = NamedTool(type="function", function=Named(name=choice)) if named else choice
    return Tools(format_of(tokenizer), functions, wanted, parallel=parallel)


def calls_of(asked: Tools, text: str) -> list[Call]:
    pieces = asked.reader().feed(text, final=True)
    assert all(isinstance(piece, Call) for piece in pieces), pieces
    return [piece for piece in pieces if isinstance(piece, Call)]


@pytest.mark.parametrize("parallel", [True, False])
def test_what_is_required_is_calls_that_fit(chooser: Chooser, parallel: bool) -> None:
    asked = tools(chooser.tokenizer, "required", parallel=parallel)
    for seed in SEEDS:
        calls = calls_of(asked, chooser.answer(asked, seed))
        assert calls
        assert all(map(fits, calls))
        assert parallel or len(calls) == 1


@pytest.mark.parametrize("name", ["book", "clock"])
def test_a_name_is_one_call_of_that_function(chooser: Chooser, name: str) -> None:
    asked = tools(chooser.tokenizer, name)
    (call,) = calls_of(asked, chooser.answer(asked, 0))
    assert call.name == name
    assert fits(call)


def test_with_auto_and_nothing_said_of_calls_the_text_is_free(chooser: Chooser) -> None:
    form = format_of(chooser.tokenizer)
    asked = Tools(form, FUNCTIONS, "auto")
    assert (asked.grammar is None) == form.several


def test_with_auto_and_one_call_at_most_text_is_free_and_a_second_call_cannot_be_said(
    chooser: Chooser,
) -> None:
    form = format_of(chooser.tokenizer)
    asked = tools(chooser.tokenizer, "auto", parallel=False)
    call = form.one("clock", '{"zone": 1}')
    for text in ("", "Hello, wörld", "It is {} [] <b>.", call):
        assert chooser.says(asked, text), text
    for text in (f"{call}{form.between}{call}", f"{call} Done."):
        assert not chooser.says(asked, text), text
    assert chooser.says(asked, f"I look.{call}")
    assert not chooser.says(asked, form.one("other", "{}"))
    if form.token_ids:
        assert chooser.says(asked, "</tool_call> [ARGS]"), "other tokens are as free as text"


def test_with_auto_strict_functions_are_called_as_their_schema_says(chooser: Chooser) -> None:
    form = format_of(chooser.tokenizer)
    asked = tools(chooser.tokenizer, "auto", strict=True)
    assert chooser.says(asked, form.one("clock", "{}"))
    assert not chooser.says(asked, form.one("clock", '{"zone": 1}'))
    assert chooser.says(asked, "Hello")
