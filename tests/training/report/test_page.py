"""The page: whole by itself, and nothing from a file becomes markup."""

from __future__ import annotations

import pytest

from brainstacks.stacks.card import plain
from tests.training.report.parsed_page import NASTY, Parsed
from training.report.page import Figure, Section, Table, nats, render

SECTION = Section(
    NASTY,
    [Figure("<svg></svg>", NASTY)],
    [Table(NASTY, [NASTY], [[NASTY]]), Table("open", ["a"], [], open=True)],
    [NASTY],
    document=NASTY,
)


def test_everything_but_plots_is_escaped() -> None:
    page = Parsed(render(NASTY, [SECTION]))
    assert "script" not in page.tags()
    assert "svg" in page.tags()
    assert page.texts.count(NASTY) == 10


def test_the_page_needs_no_other_file_and_runs_nothing() -> None:
    page = Parsed(render("t", [SECTION, Section("empty", command="make it")]))
    assert not page.tags() & {"script", "link", "img", "iframe", "object"}
    (policy,) = (a["content"] for t, a in page.elements if "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert [a["href"] for _, a in page.elements if "href" in a] == ["#section-1", "#section-2"]
    assert ids == {"section-1", "section-2"}


def test_tables_are_folded_away_unless_they_are_open() -> None:
    page = Parsed(render("t", [SECTION]))
    assert ["open" in a for tag, a in page.elements if tag == "details"] == [False, True, False]


def test_an_empty_section_says_what_makes_it() -> None:
    assert "<code>brainstacks-train evaluate</code> makes it" in render(
        "t", [Section("Evaluation", command="brainstacks-train evaluate")]
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"min": 3, "mean": 3.25}, "min 3, mean 3.25"),
        (["chat", "math"], "chat, math"),
        (0.123456, "0.1235"),
        (None, "-"),
        (True, "True"),
        (7, "7"),
    ],
)
def test_values_are_for_people(value: object, text: str) -> None:
    assert plain(value) == text


def test_a_loss_that_is_not_known_is_a_dash() -> None:
    assert (nats(1.23456), nats(float("nan"))) == ("1.2346", "-")
