"""Prompts and compositions: equal seeds give equal traffic, and mixes are what their names say."""

from __future__ import annotations

from collections import Counter

from benchmarks.serving.traffic import WEIGHTS, adjacent, apart, distinct, reweighted, text_prompt, zipf
from brainstacks.base_model import BaseModel

DOMAINS = tuple(f"d{i}" for i in range(10))


def test_four_of_ten_are_neighbours_or_span_the_registry() -> None:
    assert tuple(adjacent(DOMAINS)) == ("d0", "d1", "d2", "d3")
    assert tuple(apart(DOMAINS)) == ("d0", "d3", "d6", "d9")
    assert tuple(adjacent(DOMAINS).values()) == tuple(apart(DOMAINS).values()) == WEIGHTS


def test_distinct_rows_have_different_stacks() -> None:
    rows = distinct(DOMAINS, 16, seed=3)
    assert len({frozenset(row) for row in rows}) == 16
    assert all(len(row) == 4 for row in rows)
    assert distinct(DOMAINS, 16, seed=3) == rows
    assert distinct(DOMAINS[:4], 3, seed=0)[2]  # fewer choices than rows: they come again


def test_reweighted_rows_differ_in_weights_alone() -> None:
    rows = reweighted(adjacent(DOMAINS), 16, seed=0)
    assert {frozenset(row) for row in rows} == {frozenset(adjacent(DOMAINS))}
    assert len({tuple(row.values()) for row in rows}) == 16
    assert all(weight > 0.12 for row in rows for weight in row.values()), "the gate would drop it"


def test_zipf_draws_the_first_items_most() -> None:
    counts = Counter(zipf(50, 10_000, seed=0))
    assert counts[0] > 1.5 * counts[1] > 1.5 * counts[4] > counts[49] > 0
    assert zipf(50, 20, seed=7) == zipf(50, 20, seed=7)


def test_text_prompts_have_the_asked_length_and_begin_differently(tiny_base: BaseModel) -> None:
    tokenizer = tiny_base.chat_tokenizer()
    prompts = [text_prompt(tokenizer, 200, number) for number in range(12)]
    assert {len(prompt) for prompt in prompts} == {200}
    assert len({prompt[:16] for prompt in prompts}) == 12
