"""A text with a grammar is what was asked for, whatever model and sampling say; others do not notice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from brainstacks.engine.request import Grammar
from brainstacks.engine.sampling import grammar
from brainstacks.errors import InvalidRequest
from tests.engine.driving import Answer, Served, finish, prompt_of, request, serve, start, step_until
from tests.tiny import END

pytestmark = pytest.mark.usefixtures("each_backend")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,8}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "bc", "déf"]}, "maxItems": 3},
        "home": {"$ref": "#/$defs/place"},
    },
    "required": ["name", "age", "tags", "home"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "anyOf": [
                {"type": "null"},
                {
                    "type": "object",
                    "properties": {"x": {"type": "boolean"}},
                    "required": ["x"],
                    "additionalProperties": False,
                },
            ]
        }
    },
}


def is_person(value: Any) -> bool:
    home = value["home"]
    return (
        list(value) == ["name", "age", "tags", "home"]
        and re.fullmatch("[A-Z][a-z]{1,8}", value["name"]) is not None
        and type(value["age"]) is int
        and 0 <= value["age"] <= 130
        and len(value["tags"]) <= 3
        and set(value["tags"]) <= {"a", "bc", "déf"}
        and (home is None or (list(home) == ["x"] and isinstance(home["x"], bool)))
    )


SCHEMAS: list[tuple[dict[str, Any], Callable[[Any], bool]]] = [
    (PERSON, is_person),
    (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
        lambda v: 2 <= len(v) <= 4 and all(isinstance(item, bool) for item in v),
    ),
    ({"type": "string", "maxLength": 12}, lambda v: isinstance(v, str) and len(v) <= 12),
    ({"const": {"a": [1, None, "\n"]}}, lambda v: bool(v == {"a": [1, None, "\n"]})),
    ({"type": "number", "minimum": 1, "maximum": 9.5}, lambda v: 1 <= v <= 9.5),
]


def of(kind: Literal["json", "regex", "choice", "grammar"], text: Any) -> Grammar:
    return Grammar(kind, text if isinstance(text, str) else json.dumps(text))


def run(served: Served, grammar: Grammar | None, name: str = "r", n: int = 1, **options: Any) -> Answer:
    options = {"max_tokens": 300, **options}
    (answer,) = start(served.engine, request(name, prompt_of(7), n=n, grammar=grammar, **options))
    finish(served.engine)
    assert not answer.errors
    return answer


# --- the text ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schema", "fits"), SCHEMAS)
def test_json_fits_its_schema_greedily_and_at_a_high_temperature(
    served: Served, schema: dict[str, Any], fits: Callable[[Any], bool]
) -> None:
    for seed, temperature in enumerate((0.0, 1.5, 1.5, 1.5, 1.5)):
        answer = run(served, of("json", schema), f"r{seed}", temperature=temperature, seed=seed)
        assert answer.finish() == "stop", answer.text()
        assert fits(json.loads(answer.text())), answer.text()


@pytest.mark.parametrize(
    ("held", "pattern"),
    [
        (of("regex", r"[ab]{3,5}c?"), r"[ab]{3,5}c?"),
        (of("regex", r"\d{4}-é"), r"\d{4}-é"),
        (of("choice", ["yes", 'n"o\n', "perhaps", "é/\\"]), 'yes|n"o\n|perhaps|é/\\\\'),
        (of("grammar", 'start: "x" y y\ny: "1" | "22"'), "x(1|22)(1|22)"),
        (of("grammar", 'root ::= "x" y y\ny ::= "1" | "22"'), "x(1|22)(1|22)"),
    ],
)
def test_a_text_fits_its_regex_choice_or_grammar(served: Served, held: Grammar, pattern: str) -> None:
    for seed, temperature in enumerate((0.0, 1.5, 1.5, 1.5)):
        answer = run(served, held, f"r{seed}", temperature=temperature, seed=seed)
        assert answer.finish() == "stop"
        assert re.fullmatch(pattern, answer.text()), answer.text()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.5, "top_k": 2},
        {"temperature": 1.5, "top_p": 0.1},
        {"temperature": 1.5, "min_p": 0.9},
        {"logit_bias": {ord("q"): 100.0, END: 100.0, ord("a"): -100.0, ord("b"): -100.0}},
        {"repetition_penalty": 10.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
    ],
)
def test_no_option_brings_back_what_the_grammar_does_not_allow(
    served: Served, options: dict[str, Any]
) -> None:
    answer = run(served, of("regex", "[ab]{20}"), seed=1, **options)
    assert re.fullmatch("[ab]{20}", answer.text())


def test_logprobs_are_the_models_own(served: Served) -> None:
    free = run(served, None, "free", max_tokens=1, ignore_eos=True, logprobs=5)
    held = run(served, of("choice", ["zz"]), "held", logprobs=5)
    assert held.logprobs()[0].top == free.logprobs()[0].top
    assert held.logprobs()[0].logprob < free.logprobs()[0].top[-1].logprob


# --- where it ends -------------------------------------------------------------------------------


def test_the_end_of_the_sequence_is_allowed_exactly_where_the_grammar_accepts(served: Served) -> None:
    compiled = served.engine.grammars.compile(of("regex", "ab?c?"))
    matcher = compiled.matcher(ignore_eos=False)
    allowed = []
    for token in b"ab":
        allowed.append(matcher.mask().nonzero()[:, 0].tolist())
        assert not matcher.advance(token)
    allowed.append(matcher.mask().nonzero()[:, 0].tolist())
    assert allowed == [[*b"a"], [*b"bc", END], [*b"c", END]]
    assert matcher.advance(ord("c")), "nothing can follow"
    going_on = compiled.matcher(ignore_eos=True)
    going_on.advance(ord("a"))
    assert going_on.mask().nonzero()[:, 0].tolist() == [*b"bc"]


def test_max_tokens_cuts_and_says_so(served: Served) -> None:
    cut = run(served, of("regex", "a{9}"), max_tokens=8)
    assert (cut.text(), cut.finish()) == ("a" * 8, "length")
    whole = run(served, of("regex", "a{8}"), max_tokens=8)
    assert (whole.text(), whole.finish()) == ("a" * 8, "stop")


def test_a_stop_string_and_a_stop_token_end_the_text_before_its_grammar_does(served: Served) -> None:
    grammar = of("regex", "aaabbb")
    by_text = run(served, grammar, stop=("ab",))
    assert (by_text.text(), by_text.finish(), by_text.pieces()[-1].stop_reason) == ("aa", "stop", "ab")
    by_token = run(served, grammar, stop_token_ids=(ord("b"),))
    assert (by_token.text(), by_token.pieces()[-1].stop_reason) == ("aaa", ord("b"))


def test_min_tokens_and_ignore_eos_hold_as_far_as_the_grammar_goes(served: Served) -> None:
    bias = {END: 100.0}
    assert run(served, of("regex", "a{1,9}"), logit_bias=bias).text() == "a"
    assert run(served, of("regex", "a{1,9}"), logit_bias=bias, min_tokens=4).text() == "aaaa"
    assert run(served, of("regex", "a{1,3}"), logit_bias=bias, min_tokens=8).text() == "aaa"
    assert run(served, of("regex", "a{1,6}"), logit_bias=bias, ignore_eos=True).text() == "aaaaaa"
    only = run(served, of("regex", "aab"), min_tokens=9, stop_token_ids=(ord("b"),))
    assert only.pieces()[-1].stop_reason == ord("b"), "nothing else can follow"


def test_each_of_n_completions_has_a_place_of_its_own(served: Served) -> None:
    answer = run(served, of("regex", "[a-z]{12}"), n=4, temperature=1.5, seed=5)
    texts = [answer.text(i) for i in range(4)]
    assert len(set(texts)) > 1
    for i, text in enumerate(texts):
        assert re.fullmatch("[a-z]{12}", text)
        alone = run(served, of("regex", "[a-z]{12}"), f"alone{i}", temperature=1.5, seed=5 + i)
        assert alone.text() == text


# --- beside others, and interrupted --------------------------------------------------------------


def test_who_has_no_grammar_gets_the_same_tokens_beside_those_who_have_one(served: Served) -> None:
    def free() -> list[Any]:
        return [
            request("greedy", prompt_of(9), max_tokens=40, ignore_eos=True),
            request("drawn", prompt_of(5), max_tokens=40, ignore_eos=True, temperature=1.2, seed=3, top_k=9),
            request("penalised", prompt_of(6), max_tokens=40, ignore_eos=True, presence_penalty=2.0),
        ]

    alone = start(served.engine, *free())
    finish(served.engine)
    held = request("held", prompt_of(7), max_tokens=60, temperature=1.5, grammar=of("json", PERSON))
    mixed = start(served.engine, held, *free())
    finish(served.engine)
    assert [answer.ids() for answer in mixed[1:]] == [answer.ids() for answer in alone]


def test_a_completion_that_gave_up_its_memory_goes_on_in_its_grammar(tmp_path: Path) -> None:
    served = serve(tmp_path, kv_cache_tokens=128, max_batch_size=4)
    grammar = of("regex", "(abc){25}")
    answers = start(
        served.engine, *(request(f"r{i}", prompt_of(9), max_tokens=90, grammar=grammar) for i in range(3))
    )
    finish(served.engine)
    assert served.engine.gauges.preemptions > 0
    assert [(a.text(), a.finish()) for a in answers] == [("abc" * 25, "stop")] * 3


def test_a_paused_completion_goes_on_in_its_grammar(served: Served) -> None:
    slow, other = start(
        served.engine,
        request("slow", prompt_of(9), max_tokens=50, grammar=of("regex", "(abc){9}")),
        request("other", prompt_of(5)),
    )
    served.engine.step()
    served.engine.pause("slow")
    step_until(served.engine, lambda: other.over)
    served.engine.resume("slow")
    finish(served.engine)
    assert slow.text() == "abc" * 9


def test_a_grammar_that_becomes_too_slow_ends_its_own_request_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = of("regex", "a{100}")
    bad, good = start(
        served.engine,
        request("bad", prompt_of(9), max_tokens=200, grammar=held),
        request("good", prompt_of(5), max_tokens=40, ignore_eos=True),
    )
    step_until(served.engine, lambda: len(bad.ids()) == 3)
    monkeypatch.setattr(grammar, "MASK_SECONDS", -1.0)
    finish(served.engine)
    (error,) = bad.errors
    assert isinstance(error, InvalidRequest)
    assert "grammar cannot be followed any further: it takes too long" in error.message
    assert len(good.ids()) == 40
    assert not served.engine.gauges.running
