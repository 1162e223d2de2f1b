"""Splits follow the prompts and the seed, never the order of the file."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from brainstacks.errors import ConfigError
from tests.training.examples import record
from training.data.records import Message, Record, prompt_key
from training.data.splits import Pool, Splits, mix, ordered, split
from training.recipe.settings import DataRecipe

RECORDS = [record(f"question {i // 2}", f"answer {i}", f"r{i:03}") for i in range(60)]
"""30 prompts, two answers each."""


def settings(selection: int = 5, validation: int = 7, router: int = 0, seed: int = 0) -> DataRecipe:
    return DataRecipe(selection=selection, validation=validation, router=router, seed=seed)


def parts(splits: Splits) -> tuple[list[str], ...]:
    return tuple(
        [r.id for r in part] for part in (splits.train, splits.selection, splits.router, splits.validation)
    )


def test_every_record_is_in_one_split_and_every_prompt_too() -> None:
    splits = split("d", Pool(RECORDS, None), settings(router=3))
    assert sorted(id for part in parts(splits) for id in part) == [r.id for r in RECORDS]
    every = (splits.train, splits.selection, splits.router, splits.validation)
    prompts = [{prompt_key(r) for r in part} for part in every]
    assert [len(p) for p in prompts] == [21, 3, 2, 4]
    assert len(set.union(*prompts)) == 30
    assert splits.left_out == 0


def test_records_for_the_router_are_taken_from_training_alone() -> None:
    without, some = (split("d", Pool(RECORDS, None), settings(router=n)) for n in (0, 3))
    assert without.router == []
    assert (some.selection, some.validation) == (without.selection, without.validation)
    assert [*some.router, *some.train] == without.train


def test_splits_do_not_depend_on_the_order_of_the_file() -> None:
    shuffled = list(RECORDS)
    random.Random(1).shuffle(shuffled)
    assert split("d", Pool(shuffled, None), settings()) == split("d", Pool(RECORDS, None), settings())
    given = RECORDS[:6]
    expected = split("d", Pool(RECORDS[6:], given), settings())
    assert split("d", Pool(RECORDS[6:][::-1], given[::-1]), settings()) == expected


def test_splits_follow_the_seed() -> None:
    one, two = (split("d", Pool(RECORDS, None), settings(seed=s)) for s in (0, 1))
    assert set(parts(one)[1]) != set(parts(two)[1])


def test_further_records_never_set_aside_what_was_trained_on() -> None:
    more = [*RECORDS, *(record(f"other {i}", "a", f"o{i}") for i in range(3))]
    before, after = (parts(split("d", Pool(r, None), settings(router=3))) for r in (RECORDS, more))
    moved = set(before[0]) & {id for part in after[1:] for id in part}
    assert moved == set()


def test_a_domain_that_validates_on_all_it_has_is_told_so() -> None:
    with pytest.raises(ConfigError, match="all 60 records of domain 'd' share their first question with rec"):
        split("d", Pool(RECORDS, RECORDS), settings())


def test_training_records_with_a_prompt_of_the_given_validation_are_left_out() -> None:
    given = [record("QUESTION  3", "another answer", "v0")]
    splits = split("d", Pool(RECORDS, given), settings())
    assert splits.validation == given
    assert splits.left_out == 2
    assert "question 3" not in {prompt_key(r) for r in (*splits.train, *splits.selection)}
    assert len(splits.train) + len(splits.selection) == 58


def test_all_turns_of_a_conversation_are_in_one_split() -> None:
    records = []
    for i in range(12):
        asked = (Message("system", "be brief"), Message("user", f"question {i}"))
        later = (*asked, Message("assistant", "a"), Message("user", "and why?"))
        records += [Record(f"{i}/0", asked, "a"), Record(f"{i}/1", later, "b")]
    for ids in parts(split("d", Pool(records, None), settings(selection=3, validation=3, router=3))):
        assert {id.split("/")[0] for id in ids if id.endswith("/0")} == {
            id.split("/")[0] for id in ids if id.endswith("/1")
        }
    given = split("d", Pool(records, [Record("v", records[2].messages, "c")]), settings())
    assert given.left_out == 2


def test_too_few_prompts_say_what_was_set_aside() -> None:
    two = [RECORDS[0], RECORDS[2]]
    with pytest.raises(
        ConfigError, match=r"2 records of domain 'd' .* after 1 for validation, 1 for selection"
    ):
        split("d", Pool(two, None), settings(2, 2))
    with pytest.raises(ConfigError, match="after 1 for selection, 1 for router; add records"):
        split("d", Pool(two, [RECORDS[4]]), settings(1, 2, router=1))
    assert len(split("d", Pool(two, [RECORDS[4]]), settings(2, 2)).train) == 1


def test_few_records_are_mostly_trained_on_and_a_warning_says_the_numbers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    records = [record(f"question {i}", "a", str(i)) for i in range(104)]
    default = DataRecipe()
    assert (default.selection, default.validation) == (64, 200)
    made = split("orders", Pool(records, None), default)
    assert [len(part) for part in (made.train, made.selection, made.validation)] == [64, 20, 20]
    assert [line.getMessage() for line in caplog.records] == [
        "orders: of 104 records no part takes more than a fifth (`data:` has validation: 200, "
        "selection: 64): 64 to train on, 20 for validation, 20 for selection"
    ]
    caplog.clear()
    given = split("orders", Pool(records, [record("another", "b", "v")]), default)
    assert [len(part) for part in (given.train, given.selection, given.validation)] == [84, 20, 1]
    split("orders", Pool(records, [record("another", "b", "v")]), DataRecipe(selection=20))
    assert len(caplog.records) == 1, "what is as the recipe says needs no word"


def test_mixed_sources_keep_their_shares_and_repeat_nothing() -> None:
    many = [record(f"many {i}", "a", f"m{i}") for i in range(100)]
    few = [record(f"few {i}", "a", f"f{i}") for i in range(20)]
    mixed = mix([(many, 3.0), (few, 1.0)], seed=0)
    assert Counter(r.id[0] for r in mixed) == {"m": 60, "f": 20}
    assert len(set(mixed)) == 80
    assert mix([(many[::-1], 3.0), (few, 1.0)], seed=0) == mixed
    assert set(mix([(many, 3.0), (few, 1.0)], seed=1)) != set(mixed)


def test_one_source_is_used_whole_whatever_its_weight() -> None:
    assert mix([(RECORDS, 0.3)], seed=0) == ordered(RECORDS, 0)
    assert sorted(r.id for r in ordered(RECORDS, 0)) == [r.id for r in RECORDS]
