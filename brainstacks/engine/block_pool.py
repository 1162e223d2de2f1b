"""Blocks of KV memory: which are free, and how many sequences use each. Numbers only, no tensors."""

from __future__ import annotations

from collections import OrderedDict

from brainstacks.engine.prefix_cache import PrefixCache

BLOCK_TOKENS = 16
"""Tokens of one block."""

SCRATCH = 0
"""The block that is never given out: padding rows write there."""


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


class BlockPool:
    """Blocks 1..size. One that nobody uses any more keeps its prefix until the room is needed.

    Args:
        prefixes: the index of the prefixes; a block that it holds is taken last, the longest unused first.
    """

    def __init__(self, size: int, prefixes: PrefixCache) -> None:
        self.size = size
        self._prefixes = prefixes
        self._users = [0] * (size + 1)
        self._free = list(range(size, SCRATCH, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # unused, but in the prefix cache

    @property
    def available(self) -> int:
        """Blocks that can be taken."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that some sequence uses."""
        return self.size - self.available

    def users(self, block: int) -> int:
        return self._users[block]

    def take(self) -> int:
        """A block for one user. Raises IndexError: none is available."""
        if self._free:
            block = self._free.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            self._prefixes.drop(block)
        else:
            raise IndexError(f"all {self.size} blocks are in use")
        self._users[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more user of a block that is in use or in the prefix cache."""
        self._idle.pop(block, None)
        self._users[block] += 1

    def give(self, block: int) -> None:
        """One user less."""
        self._users[block] -= 1
        if self._users[block] == 0:
            if block in self._prefixes:
                self._idle[block] = None
            else:
                self._free.append(block)

    def forget(self, block: int) -> None:
        """Drop the prefix that `block` holds, if it holds one."""
        self._prefixes.drop(block)
        if block in self._idle:
            del self._idle[block]
            self._free.append(block)
