"""Strict JSON: what is read can always be written into a reply again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstacks.errors import InvalidArtifact
from brainstacks.stacks.document import MAX_DEPTH, Fields, dump_json, parse_json, show

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), VALUES))
def test_every_plain_document_survives_a_round_trip(document: dict[str, Any]) -> None:
    assert parse_json(dump_json(document), "it") == document


@given(st.binary() | st.text(alphabet='{}[]",:\\ud8019eEN -aIinfty'))
def test_whatever_is_read_can_be_sent(text: bytes | str) -> None:
    try:
        value = parse_json(text, "it")
    except InvalidArtifact:
        return
    assert json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("opening", "leaf", "closing"), [("[", "", "]"), ("[", "1", "]"), ('{"a":', "1", "}")]
)
def test_nesting_is_bounded_long_before_the_stack_is(opening: str, leaf: str, closing: str) -> None:
    parse_json(opening * MAX_DEPTH + leaf + closing * MAX_DEPTH, "it")
    for depth in (MAX_DEPTH + 1, 900, 100_000):
        with pytest.raises(InvalidArtifact, match="it is nested deeper than 32 levels"):
            parse_json(opening * depth + leaf + closing * depth, "it")


def test_the_repeated_key_is_named_at_any_depth() -> None:
    with pytest.raises(InvalidArtifact, match="the key 'b' twice"):
        parse_json('{"a": [{"c": 1, "b": 1, "d": 2, "b": 2}]}', "it")


@given(st.text() | st.binary() | st.lists(st.text()))
def test_what_is_shown_is_short(value: object) -> None:
    assert len(show(value)) <= 103
    assert len(show([value] * 1000)) <= 103


def test_fields_are_taken_once_and_typed() -> None:
    fields = Fields({"t": "x", "i": 3, "n": 2, "l": [], "m": {}, "none": None}, "it")
    assert (fields.text("t"), fields.integer("i", 0, 3), fields.number("n")) == ("x", 3, 2.0)
    assert (fields.items("l"), fields.mapping("m"), fields.nullable(fields.text, "none")) == ([], {}, None)
    fields.end()
    with pytest.raises(InvalidArtifact, match="it lacks the field 't'"):
        fields.text("t")


@pytest.mark.parametrize("reader", ["text", "integer", "number", "items", "mapping"])
def test_a_boolean_or_null_is_no_substitute(reader: str) -> None:
    for value in (True, None):
        with pytest.raises(InvalidArtifact, match="'f' of it is"):
            getattr(Fields({"f": value}, "it"), reader)("f")


def test_integers_out_of_range_and_unknown_fields_are_named() -> None:
    fields = Fields({"f": 4, "surprise": 1}, "it")
    with pytest.raises(InvalidArtifact, match=r"'f' of it is 4; it is an integer in 0\.\.3"):
        fields.integer("f", 0, 3)
    with pytest.raises(InvalidArtifact, match="it has no field 'surprise'"):
        fields.end()
