"""Blocks are given out once, counted, and come back; prefixes in unused blocks are the last to go."""

from __future__ import annotations

import random

import pytest

from brainstacks.engine.block_manager import SCRATCH, BlockPool, PrefixCache, blocks_for


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (160, 10)])
def test_a_part_of_a_block_takes_a_whole_one(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens) == blocks


def test_every_block_but_the_scratch_one_is_given_out_once() -> None:
    pool = BlockPool(5, PrefixCache())
    assert sorted(pool.take() for _ in range(5)) == [1, 2, 3, 4, 5]
    assert (pool.available, pool.used) == (0, 5)
    assert SCRATCH == 0
    with pytest.raises(IndexError, match="all 5 blocks are in use"):
        pool.take()


def test_a_shared_block_is_free_when_its_last_user_is_gone() -> None:
    pool = BlockPool(1, PrefixCache())
    block = pool.take()
    pool.share(block)
    pool.give(block)
    assert pool.available == 0
    pool.give(block)
    assert pool.available == 1


def test_blocks_with_a_prefix_are_taken_last_and_the_longest_unused_first() -> None:
    prefixes = PrefixCache()
    pool = BlockPool(4, prefixes)
    first, second, plain, kept = (pool.take() for _ in range(4))
    for block in (first, second, kept):
        prefixes.put((), (block,), block)
    for block in (first, second, plain):
        pool.give(block)
    assert pool.available == 3
    pool.share(first)  # found by another completion, and given back: now it was used last
    pool.give(first)
    assert [pool.take() for _ in range(3)] == [plain, second, first]
    assert prefixes.find((), (second,)) is None
    assert prefixes.find((), (kept,)) is not None


def test_a_forgotten_prefix_makes_an_unused_block_plain_and_leaves_a_used_one_in_use() -> None:
    prefixes = PrefixCache()
    pool = BlockPool(2, prefixes)
    used, unused = pool.take(), pool.take()
    for block in (used, unused):
        prefixes.put((), (block,), block)
    pool.give(unused)
    pool.forget(used)
    pool.forget(unused)
    assert len(prefixes) == 0
    assert (pool.available, pool.used) == (1, 1)
    pool.give(used)
    assert pool.available == 2


def test_random_use_loses_no_block_and_gives_none_to_two() -> None:
    rng = random.Random(0)
    prefixes = PrefixCache()
    pool = BlockPool(12, prefixes)
    users: dict[int, int] = {}
    for step in range(3000):
        held = [block for block, count in users.items() if count]
        what = rng.random()
        if what < 0.4 and pool.available:
            block = pool.take()
            assert not users.get(block)
            users[block] = 1
        elif what < 0.55 and held:
            block = rng.choice(held)
            pool.share(block)
            users[block] += 1
        elif what < 0.65 and held:
            block = rng.choice(held)
            if block not in prefixes:
                prefixes.put(step, (), block)
        elif held:
            block = rng.choice(held)
            pool.give(block)
            users[block] -= 1
        assert pool.used == sum(count > 0 for count in users.values())
        assert all(pool.users(block) == count for block, count in users.items())
