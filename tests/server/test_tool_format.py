"""The format of calls is the one that the base's chat template writes, and the generic one of all others."""

from __future__ import annotations

import pytest

from server.tool_format import GENERIC, format_of
from tests.server.tool_templates import TEMPLATES, tokenizer_with


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_has_the_format_in_which_it_writes_a_call(name: str) -> None:
    form = format_of(tokenizer_with(TEMPLATES[name]))
    assert form.name == name.removesuffix(", spaced")
    assert form.in_template == (name != "generic")
    assert (form.first == "[TOOL_CALLS] [") == name.endswith("spaced")
    assert form.several == (name != "llama3"), "its template refuses two calls"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (TEMPLATES["hermes"].replace('"arguments"', '"with"'), "it writes calls in a way of its own"),
        (TEMPLATES["hermes"].replace("tool | tojson", "tool.type"), "it does not tell of functions"),
        ("{{ raise_exception('no') }}", "it refuses everything"),
        ("{{ messages[0].content }}", "it leaves calls out"),
    ],
)
def test_what_is_not_written_in_a_known_format_is_told_in_the_generic_one(template: str, why: str) -> None:
    assert format_of(tokenizer_with(template)) is GENERIC, why


def test_a_base_without_a_template_has_the_generic_one() -> None:
    assert format_of(tokenizer_with("")) is GENERIC


@pytest.mark.parametrize(
    ("name", "texts", "special"),
    [
        ("hermes", {"<tool_call>", "</tool_call>"}, False),
        ("mistral", {"[TOOL_CALLS]"}, True),
        ("mistral-args", {"[TOOL_CALLS]", "[ARGS]"}, True),
        ("llama3", set[str](), False),
    ],
)
def test_marks_that_are_tokens_are_known_and_whether_texts_leave_them_out(
    name: str, texts: set[str], special: bool
) -> None:
    form = format_of(tokenizer_with(TEMPLATES[name]))
    assert form.token_ids.keys() == texts
    assert form.special is special
    bare = format_of(tokenizer_with(TEMPLATES[name], tokens=False))
    assert not bare.token_ids
    assert not bare.special
