"""A grammar's text as llguidance takes it, within limits; and where and why it is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import gbnf_to_lark

from brainstacks.engine.request import Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

LIMITS = LLParserLimits(
    max_items_in_row=2_000,
    step_max_items=5_000,
    step_lexer_fuel=100_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
"""Of compiling, and of a token: a mask takes well under a millisecond, and where it fails, some hundred."""

_JSON: JsonCompileOptions = {"whitespace_pattern": r" |\n[ \t]{0,40}"}
"""A gap in JSON is nothing, a space, or a new line with its indentation: a small model that may write any
number of spaces writes nothing else."""

_MOST_TRIES = 64
_MOST_MULTIPLES = 250_000
"""llguidance makes a state of each remainder of `multipleOf`, without a limit: these take some seconds."""
_MULTIPLE = re.compile(r'"multipleOf"\s*:\s*([-+0-9.eE]+)')
_ESCAPED = re.compile(r"\\u00([0-9a-fA-F]{2})")
_LARK = re.compile(r"\s*(?:%llguidance\b|start\s*:(?!:=))")
_BAD_REGEX = re.compile(r"regex parse error:\n {4}[^\n]*\n {4}( *)\^+\nerror: ([^\n]*)")
_BAD_SCHEMA = re.compile(r"(?:at )?\d+\(\d+\): failed to compile JSON schema: ([^\n]*)")
_BAD_LARK = re.compile(r"(?:at )?(\d+)\((\d+)\): ([^\n]*)")


def source_of(grammar: Grammar) -> str:
    """As llguidance takes it. Raises ValueError, RecursionError."""
    _check_multiples(grammar.text)
    if grammar.kind == "json":
        return LLMatcher.grammar_from_json_schema(grammar.text, overrides=_JSON)
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "choice":
        choices = json.loads(grammar.text)
        if not choices:
            raise ValueError("there is nothing to choose from")
        return _lark("start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices))
    # llguidance's own test for Lark is a regex that takes quadratic time.
    if any(_LARK.match(line) for line in grammar.text.splitlines()):
        return _lark(grammar.text)
    try:
        return _lark(gbnf_to_lark(grammar.text))
    except Exception as error:
        raise ValueError(str(error)) from error


def _check_multiples(text: str) -> None:
    """Raises ValueError: its `multipleOf`s, which may meet in one number, have too many remainders."""
    found = _MULTIPLE.findall(_ESCAPED.sub(lambda escape: chr(int(escape[1], 16)), text))
    numbers = [Fraction(n) for n in found if len(n) <= 16 and 1e-9 <= abs(float(n)) <= 1e9]
    scale = math.lcm(*(n.denominator for n in numbers))
    remainders = len(found) * math.lcm(*(abs(int(n * scale)) for n in numbers))
    if len(numbers) < len(found) or remainders > _MOST_MULTIPLES:
        raise ValueError(
            f"'multipleOf' of {', '.join(found[:8])} has too many remainders; use fewer or smaller numbers"
        )


def place_of(grammar: Grammar, reason: str) -> str:
    """Where in a JSON schema the smallest part is that llguidance refuses for `reason`, as a JSON pointer.

    The schema may be one of those in a grammar (`%json {...}`). "" where that is all of it, or no schema.

    llguidance does not tell, so parts are tried alone, each with the root's definitions.
    """
    if grammar.kind == "grammar":
        schemas = (Grammar("json", text) for text in _schemas_in(grammar.text))
        refused = next((one for one in schemas if _refusal(source_of(one)) == reason), None)
        return place_of(refused, reason) if refused else ""
    if grammar.kind != "json":
        return ""
    schema = json.loads(grammar.text)
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    tries, place, inside = _MOST_TRIES, "", True
    while inside:
        inside = False
        for path, part in _parts(schema):
            if tries == 0:
                return place
            tries -= 1
            source = LLMatcher.grammar_from_json_schema({**definitions, **part}, overrides=_JSON)
            if _refusal(source) == reason:
                place, schema, inside = place + path, part, True
                break
    return place


def _refusal(source: str) -> str:
    """Why llguidance does not take it; "" where it does."""
    return tidy(LLMatcher.validate_grammar(source, limits=LIMITS))


def _schemas_in(text: str) -> Iterator[str]:
    """The JSON schemas in a grammar in Lark's notation."""
    for found in re.finditer(r"%json\s*(?=\{)", text):
        try:
            _, end = json.JSONDecoder().raw_decode(text, found.end())
        except (ValueError, RecursionError):
            return
        yield text[found.end() : end]


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas that stand in `schema`, or in a list or an object of it, and their JSON pointers."""
    for key, value in schema.items():
        if isinstance(value, dict):
            yield f"/{key}", value
        inner = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        yield from ((f"/{key}/{name}", part) for name, part in inner if isinstance(part, dict))


def _lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def tidy(error: str) -> str:
    """llguidance's words, on one line, with the place; "" where it only says that nothing can follow."""
    if error.startswith("NoExtension"):
        return ""
    if found := _BAD_REGEX.search(error):
        return f"regex, character {len(found[1]) + 1}: {found[2]}"
    if found := _BAD_SCHEMA.match(error):
        return found[1]
    if found := _BAD_LARK.match(error):
        return f"line {found[1]}, column {found[2]}: {found[3]}"
    return " ".join(error.replace("<non-verbose/>", "").split())[:400]
