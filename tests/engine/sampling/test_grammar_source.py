"""A grammar that cannot be used is refused with the place and the reason, in bounded time."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any, Literal

import pytest

from brainstacks.engine.request import MAX_GRAMMAR, Grammar
from brainstacks.engine.sampling import grammar as module
from brainstacks.engine.sampling.grammar import CACHED, Grammars
from brainstacks.errors import InvalidRequest, Overloaded
from tests.tiny import END, VOCAB, byte_tokenizer

Kind = Literal["json", "regex", "choice", "grammar"]


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(byte_tokenizer(), VOCAB + 41, (END,))


def nested(part: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"anyOf": [{"type": "null"}, part]}}},
    }


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("json", nested({"type": "frob"}), "Invalid type: frob (at /properties/a/items/anyOf/1)"),
        (
            "json",
            nested({"type": "string", "pattern": "(a"}),
            "character 1: unclosed group (at /properties/a/",
        ),
        (
            "grammar",
            f'start: "x" %json {{"type": "null"}} | %json {json.dumps(nested({"if": {}}))}',
            'Unimplemented keys: ["if"] (at /properties/a/items/anyOf/1)',
        ),
        ("json", nested({"if": {}}), 'Unimplemented keys: ["if"] (at /properties/a/items/anyOf/1)'),
        ("json", {"$ref": "#/x"}, "'/x' does not exist"),
        ("json", {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "no text can satisfy it"),
        ("json", {"enum": []}, "anyOf is empty"),
        ("json", "{", "EOF"),
        ("regex", "ab(c", "regex, character 3: unclosed group"),
        ("regex", "(?=a)b", "look-ahead"),
        ("grammar", 'start: "a" b\nb: foo', 'line 2, column 4: unknown name: "foo"'),
        ("grammar", "start: (", "line 1, column 9"),
        ("grammar", "root ::= x", "Rule 'x' not found"),
        ("grammar", "hello", "Expected ::= at line 1"),
        ("grammar", 'start: <|im_end|> "a"', "no text can satisfy it"),
        ("choice", [], "there is nothing to choose from"),
    ],
)
def test_it_is_refused_with_the_place_and_the_reason(
    grammars: Grammars, kind: Kind, text: Any, reason: str
) -> None:
    written = text if isinstance(text, str) else json.dumps(text)
    with pytest.raises(InvalidRequest) as refused:
        grammars.compile(Grammar(kind, written, "the.field"))
    assert refused.value.message.startswith("the.field cannot be used: ")
    assert reason in refused.value.message
    assert refused.value.param == "the.field"
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "a" * (MAX_GRAMMAR + 1)),
        ("regex", "(" * MAX_GRAMMAR),
        ("regex", "((x{1000}){1000}){1000}"),
        ("grammar", "root ::= " + "(" * 30_000),
        ("grammar", "start: " + "(" * 30_000),
        ("grammar", "\n" * MAX_GRAMMAR),
        ("json", '{"multipleOf": 999999999, "type": "integer"}'),
        ("json", '{"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}]}'),
        ("json", '{"type": "integer", "multip\\u006ceOf": 1e999999}'),
        ("grammar", 'start: %json {"type": "integer", "multipleOf": 999983}'),
        ("json", json.dumps({"allOf": [{"anyOf": [{"properties": {f"a{i}": {"const": j}}} for j in range(4)]}
                                       for i in range(12)]})),
    ],
)  # fmt: skip
def test_what_would_take_too_long_is_refused(grammars: Grammars, kind: Kind, text: str) -> None:
    with pytest.raises(InvalidRequest):
        grammars.compile(Grammar(kind, text))


def test_columns_beyond_the_tokenizers_vocabulary_are_not_allowed(grammars: Grammars) -> None:
    anything = grammars.compile(Grammar("regex", r"(?s:.*)")).matcher(ignore_eos=False)
    mask = anything.mask()
    assert mask.shape == (VOCAB + 41,)
    assert mask[END]
    assert not mask[VOCAB:].any()


def test_a_base_without_a_fast_tokenizer_refuses_grammars_by_their_field() -> None:
    with pytest.raises(InvalidRequest, match="x needs a base with a fast tokenizer"):
        Grammars(None, VOCAB, (END,)).compile(Grammar("regex", "a", "x"))


def test_what_is_compiled_is_kept_up_to_a_bound(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    compile_one = grammars._compile

    def counted(grammar: Grammar) -> Any:
        compiled.append(grammar.text)
        return compile_one(grammar)

    monkeypatch.setattr(grammars, "_compile", counted)
    for text in ("one", "one", *(f"r{i}" for i in range(CACHED - 1)), "one", "r0", "more", "r0", "r1"):
        grammars.compile(Grammar("regex", text))
    assert compiled == ["one", *(f"r{i}" for i in range(CACHED - 1)), "more", "r1"]


@pytest.mark.anyio
async def test_who_compiles_for_too_long_is_refused_and_who_never_began_is_told_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grammars = Grammars(byte_tokenizer(), VOCAB, (END,))
    gate = threading.Event()
    monkeypatch.setattr(module, "MAX_SECONDS", 0.05)
    monkeypatch.setattr(grammars, "_compile", lambda grammar: gate.wait(300))
    try:
        slow = [asyncio.ensure_future(grammars.prepare(Grammar("regex", text))) for text in "ab"]
        for one in slow:
            with pytest.raises(InvalidRequest, match="takes more than"):
                await one
        with pytest.raises(Overloaded, match="retry later"):
            await grammars.prepare(Grammar("regex", "c"))
    finally:
        gate.set()
