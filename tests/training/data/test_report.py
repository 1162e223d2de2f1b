"""The report says what a run will train on."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from brainstacks.tokenizer import ChatTokenizer
from tests.tiny import END, byte_tokenizer
from tests.training.examples import record
from training.data.contamination import Overlap
from training.data.domains import DomainData
from training.data.report import DataReport, report

TOKENIZER = ChatTokenizer(byte_tokenizer(), (END,))
AROUND = len(TOKENIZER.encode_chat([{"role": "user", "content": ""}]))
"""Tokens of the template around a prompt."""


@pytest.fixture
def made() -> DataReport:
    left_out = {"unusable": 1, "share": 2, "repeated": 3, "contaminated": 4, "in validation": 5}
    lengths = [(10, 9), (20, 9), (30, 49), (90, 9)]
    chat = DomainData(
        "chat",
        train=[record("q" * p, "a" * r) for p, r in lengths],
        selection=[record("s", "a")],
        validation=[record("v", "a"), record("w", "a")],
        sources=(),
        left_out=left_out,
        received=6,
        overlaps=(),
        router=[record("t", "a"), record("u", "a"), record("x", "a")],
    )
    math = DomainData(
        "math", [record("V", "a"), record("w", "a"), record("[x]", "a")], [], [record("z", "a")],
        sources=(), left_out=left_out, received=0, overlaps=(Overlap("chat", "math", 2, 0, ("v", "[x]")),),
    )  # fmt: skip
    return report({"chat": chat, "math": math}, TOKENIZER, AROUND + 70)


def test_counts_and_lengths_are_those_of_the_records(made: DataReport) -> None:
    chat = made.domains[0]
    assert (chat.train, chat.selection, chat.router, chat.validation, chat.received) == (4, 1, 3, 2, 6)
    assert chat.prompt_tokens[-1] == AROUND + 90
    assert chat.response_tokens == (10, 50, 50, 50)


def test_the_limit_cuts_one_response_and_leaves_one_prompt_no_room(made: DataReport) -> None:
    assert (made.domains[0].cut, made.domains[0].without_room) == (0.25, 0.25)
    assert (made.domains[1].cut, made.domains[1].without_room) == (0.0, 0.0)


def test_leaks_are_validation_prompts_that_another_domain_trains_on(made: DataReport) -> None:
    assert made.leaks == {"chat": {"chat": 0, "math": 0}, "math": {"chat": 2, "math": 0}}


def test_it_shows_every_table_and_the_shared_prompts(made: DataReport) -> None:
    console = Console(file=io.StringIO(), width=160)
    made.show(console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for text in (
        "router",
        "in validation",
        "Tokens of the training prompts",
        "p50",
        f"cut at {AROUND + 70}",
        "25.0%",
        "chat and math share 2",
        "[x]",
    ):
        assert text in shown
