"""A block is found only by all that its keys and values depend on."""

from __future__ import annotations

from brainstacks.engine.block_manager import PrefixCache

TOKENS = (1, 2, 3)


def test_a_block_is_found_by_its_tokens_after_what_came_before_and_by_nothing_else() -> None:
    cache = PrefixCache()
    root = (("chat", 1, "d", 0.8),)
    first = cache.put(root, TOKENS, 7)
    second = cache.put(first.identity, TOKENS, 8)
    assert cache.find(root, TOKENS) == first
    assert cache.find(first.identity, TOKENS) == second
    assert cache.find((), TOKENS) is None
    assert cache.find((("chat", 1, "d", 0.7),), TOKENS) is None
    assert cache.find((("chat", 2, "d", 0.8),), TOKENS) is None
    assert cache.find(root, (1, 2, 4)) is None
    assert cache.find(second.identity, TOKENS) is None


def test_what_is_there_already_stays() -> None:
    cache = PrefixCache()
    first = cache.put((), TOKENS, 7)
    assert cache.put((), TOKENS, 8) == first
    assert 8 not in cache
    assert len(cache) == 1


def test_what_hung_on_a_dropped_block_is_not_found_when_its_tokens_come_back() -> None:
    cache = PrefixCache()
    first = cache.put((), TOKENS, 7)
    cache.put(first.identity, TOKENS, 8)
    cache.drop(7)
    assert cache.find((), TOKENS) is None
    again = cache.put((), TOKENS, 9)
    assert again.identity != first.identity
    assert cache.find(again.identity, TOKENS) is None


def test_a_block_has_one_entry_so_that_dropping_it_leaves_nothing_behind() -> None:
    """Two completions share a block, and another block that came before it was replaced for one of them."""
    cache = PrefixCache()
    entry = cache.put("one chain", TOKENS, 7)
    assert cache.put("another chain", TOKENS, 7) == entry
    cache.drop(7)
    cache.drop(7)
    assert cache.find("one chain", TOKENS) is None
    assert cache.find("another chain", TOKENS) is None
