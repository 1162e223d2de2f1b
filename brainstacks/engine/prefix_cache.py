"""Which blocks of KV memory hold a prefix that others can use.

A block's keys and values depend on everything before it, so it is known by a chain: its own token ids and the
identity of the block before it. The first of a chain hangs on a root: the stack versions, digests and weights
that it was computed with. The chain itself is the key, so nothing rests on a hash being free of collisions.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class Prefix:
    """A full block in the cache.

    Attributes:
        block: where its keys and values are.
        identity: names this entry for ever, so that what hangs on a forgotten block is never found again.
    """

    block: int
    identity: int


class PrefixCache:
    """An index; the blocks are the pool's."""

    def __init__(self) -> None:
        self._prefixes: dict[Hashable, Prefix] = {}
        self._keys: dict[int, Hashable] = {}
        self._count = 0

    def __contains__(self, block: int) -> bool:
        return block in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, before: Hashable, token_ids: tuple[int, ...]) -> Prefix | None:
        """The block that holds `token_ids` after `before`: a root, or the identity of another block."""
        return self._prefixes.get((before, token_ids))

    def put(self, before: Hashable, token_ids: tuple[int, ...], block: int) -> Prefix:
        """Remember `block`; the entry, which is another block's where one with that key was there already."""
        # A block that two sequences share may come a second time, after what it hangs on was replaced.
        key = self._keys.get(block, (before, token_ids))
        if key not in self._prefixes:
            self._count += 1
            self._prefixes[key] = Prefix(block, self._count)
            self._keys[block] = key
        return self._prefixes[key]

    def drop(self, block: int) -> None:
        """Forget `block`; does nothing when it is not here."""
        key = self._keys.pop(block, None)
        if key is not None:
            del self._prefixes[key]
