"""Prompts that domains share are found, word for word and nearly, and end up in one domain."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations

import pytest

from tests.training.examples import record
from training.data.contamination import CONTAINMENT, SHINGLE, Overlap, Shared, resolve, shared_prompts
from training.data.records import Message, Record, prompt_key, question_words
from training.data.splits import Pool

LONG = "a train leaves the station at nine and runs to the coast at sixty miles an hour when does it arrive"
NEAR = LONG.replace("arrive", "get there")


def records(domain: str, *prompts: str) -> list[Record]:
    return [record(prompt, f"{domain} {i}", f"{domain}{i}") for i, prompt in enumerate(prompts)]


def test_exact_repeats_and_near_duplicates_are_counted_apart() -> None:
    domains = {
        "chat": records("c", "Who is it?", LONG, "only chat"),
        "math": records("m", "who  is it?", NEAR, "only math"),
        "code": records("k", "only code"),
    }
    found = shared_prompts(domains)
    assert found.overlaps == (Overlap("chat", "math", 1, 1, ("who is it?", NEAR)),)
    assert set(found.groups) == {"who is it?", LONG, NEAR}
    assert found.groups[LONG] == found.groups[NEAR] != found.groups["who is it?"]


def test_a_prompt_inside_a_longer_one_is_a_near_duplicate_whichever_domain_has_it() -> None:
    longer = f"please answer this question with care {LONG} and give your reasons in full, step by step"
    for first, second in ((LONG, longer), (longer, LONG)):
        found = shared_prompts({"a": records("a", first), "b": records("b", second)})
        assert [(o.exact, o.near) for o in found.overlaps] == [(0, 1)]


def test_neither_repeats_within_a_domain_nor_a_common_system_turn_are_contamination() -> None:
    assert shared_prompts({"a": records("a", LONG, NEAR, LONG), "b": []}) == Shared((), {})
    system = Message("system", LONG)
    asked = {
        d: [Record(d, (system, Message("user", f"what is {d} and what is it for")), "r")] for d in ("a", "b")
    }
    assert shared_prompts(asked) == Shared((), {})


def brute_force(domains: Mapping[str, Sequence[Record]]) -> list[tuple[str, str, int, int]]:
    """(first, second, exact, near) by comparing every prompt with every other."""

    def shingles(r: Record) -> set[tuple[str, ...]]:
        words = question_words(r)
        return {tuple(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}

    found = []
    for first, second in combinations(domains, 2):
        mine = {prompt_key(r): shingles(r) for r in domains[first]}
        theirs = {prompt_key(r): shingles(r) for r in domains[second]}
        near = 0
        for key, held in theirs.items():
            smallest = [(len(held & other), min(len(held), len(other))) for other in mine.values()]
            near += key not in mine and any(n and c >= CONTAINMENT * n for c, n in smallest)
        exact = len(set(mine) & set(theirs))
        if exact or near:
            found.append((first, second, exact, near))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_inverted_index_finds_what_comparing_all_pairs_finds(seed: int) -> None:
    rng = random.Random(seed)
    seeds = [[rng.choice("abcdefgh") for _ in range(rng.randint(6, 40))] for _ in range(12)]

    def variant() -> str:
        words = list(rng.choice(seeds))
        for _ in range(rng.choice([0, 0, 1, 2])):
            words[rng.randrange(len(words))] = rng.choice("xyz")
        return " ".join(words[rng.choice([0, 0, 3]) :])

    domains = {d: records(d, *(variant() for _ in range(25))) for d in ("a", "b", "c")}
    found = shared_prompts(domains).overlaps
    assert [(o.first, o.second, o.exact, o.near) for o in found] == brute_force(domains)
    assert sum(o.near for o in found) > 0


# --- what becomes of them ------------------------------------------------------------------------


def ids(pools: Mapping[str, Pool]) -> dict[str, list[str]]:
    return {name: [r.id for r in pool.all] for name, pool in pools.items()}


@pytest.fixture
def pools() -> dict[str, Pool]:
    """`b` has three records of a question that `a` has one of; `c` has a near-duplicate of another of `a`."""
    return {
        "a": Pool(records("a", "shared question", LONG, "own a"), None),
        "b": Pool(
            records("b", "shared question", "Shared  question", "own b"), records("v", "shared question")
        ),
        "c": Pool(records("c", NEAR, "own c"), None),
    }


def shared(pools: Mapping[str, Pool]) -> Shared:
    return shared_prompts({name: pool.all for name, pool in pools.items()})


def test_reporting_changes_nothing(pools: dict[str, Pool]) -> None:
    assert resolve(pools, shared(pools), "report") == pools


def test_dropping_leaves_shared_prompts_to_the_first_domain(pools: dict[str, Pool]) -> None:
    resolved = resolve(pools, shared(pools), "drop")
    assert ids(resolved) == {"a": ["a0", "a1", "a2"], "b": ["b2"], "c": ["c1"]}
    assert resolved["b"].validation == []
    assert shared(resolved) == Shared((), {})


def test_reassigning_gives_them_to_the_domain_that_has_most_of_them(pools: dict[str, Pool]) -> None:
    resolved = resolve(pools, shared(pools), "reassign")
    # `a0` does not join `b`, which validates on that very question; `c0` joins `a`, first of equals.
    assert ids(resolved) == {"a": ["a1", "a2", "c/c0"], "b": ["b0", "b1", "b2", "v0"], "c": ["c1"]}
    assert shared(resolved) == Shared((), {})


def test_reassigned_records_join_the_training_records(pools: dict[str, Pool]) -> None:
    pools["b"] = Pool(pools["b"].records, None)
    resolved = resolve(pools, shared(pools), "reassign")
    assert ids(resolved)["b"] == ["b0", "b1", "b2", "a/a0"]


def test_pools_are_not_changed_in_place(pools: dict[str, Pool]) -> None:
    before = ids(pools)
    resolve(pools, shared(pools), "reassign")
    assert ids(pools) == before
