"""The KV blocks of each completion: taken on admission and while it grows, shared by prefix, given back.

A block's keys and values depend on everything before it, so a prefix is known by a chain: a block's own token
ids and the identity of the block before it. The first of a chain hangs on a root: the stack versions, digests
and weights that it was computed with; where further stacks act from the response on, so does the block in
which it begins. The chain itself is the key, so nothing rests on a hash being free of collisions.

Numbers only, no tensors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from brainstacks.engine.completion import Completion

BLOCK_TOKENS = 16
"""Tokens of one block."""

SCRATCH = 0
"""The block that is never given out: padding rows write there."""


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


BlockCopy = tuple[int, int]
"""(source block, target block), whose keys and values are to be copied before the next step."""


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
    """Which blocks hold a prefix that others can use: an index; the blocks are the pool's."""

    def __init__(self) -> None:
        self._prefixes: dict[Hashable, Prefix] = {}
        self._keys: dict[int, Hashable] = {}
        self._count = 0

    def __contains__(self, block: int) -> bool:
        return block in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def holds(self, prefix: Prefix) -> bool:
        """Whether `prefix` was not dropped."""
        return self._prefixes.get(self._keys.get(prefix.block)) is prefix

    def find(self, before: Hashable, token_ids: tuple[int, ...]) -> Prefix | None:
        """The block that holds `token_ids` after `before`: a root, or the identity of another block."""
        return self._prefixes.get((before, token_ids))

    def put(self, before: Hashable, token_ids: tuple[int, ...], block: int) -> Prefix:
        """Remember `block`; the entry, which is another block's where one with that key was there already."""
        # A block that two completions share may come a second time, after what it hangs on was replaced.
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
        """Blocks that some completion uses."""
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


class BlockManager:
    """Args:
    tokens: KV memory, in tokens.
    prefix_caching: completions reuse full blocks that others of the same composition computed.
    reserve: a completion takes the blocks of its longest possible completion at once, and never grows.
    """

    def __init__(self, tokens: int, *, prefix_caching: bool, reserve: bool) -> None:
        self.prefix_caching = prefix_caching
        self._reserve = reserve
        self.prefixes = PrefixCache()
        self.pool = BlockPool(blocks_for(tokens), self.prefixes)
        self.asked_tokens = 0  # that came with admitted completions, since the start
        self.reused_tokens = 0  # of them, those that the prefix cache had

    def fits(self, completion: Completion, spare: int) -> bool:
        """Whether `admit` would succeed and leave `spare` blocks."""
        return self._fits(completion, self._match(completion), spare)

    def admit(self, completion: Completion, spare: int, *, reuse: bool = True) -> bool:
        """Take blocks for all known tokens; what a prefix in the cache holds counts as computed.

        Args:
            reuse: False for a completion whose tokens are all to be computed, whatever the cache holds.

        Returns:
            False, and nothing is taken, when fewer than `spare` blocks would be left.
        """
        prefixes = self._match(completion) if reuse else []
        if not self._fits(completion, prefixes, spare):
            return False
        completion.matched = []
        for prefix in prefixes:
            self.pool.share(prefix.block)
            completion.blocks.append(prefix.block)
        completion.computed = len(prefixes) * BLOCK_TOKENS
        completion.remembered = len(prefixes)
        completion.prefix = prefixes[-1].identity if prefixes else completion.prefix_root
        self._take(completion, self._wanted(completion))
        if reuse:
            self.asked_tokens += completion.length
            self.reused_tokens += completion.computed
        return True

    def extend(self, completion: Completion) -> bool:
        """Have room for one more computed token; False when no block is to be had."""
        if completion.computed < len(completion.blocks) * BLOCK_TOKENS:
            return True
        if not self.pool.available:
            return False
        completion.blocks.append(self.pool.take())
        return True

    def fork(self, leader: Completion, follower: Completion) -> list[BlockCopy] | None:
        """Give `follower` the prompt that `leader` has computed: full blocks are shared, the rest is copied.

        Returns:
            the copies to make; None, and nothing is taken, when there are too few blocks.
        """
        prompt = len(follower.request.prompt_ids)
        full = prompt // BLOCK_TOKENS
        if self._wanted(follower) - full > self.pool.available:
            return None
        for block in leader.blocks[:full]:
            self.pool.share(block)
            follower.blocks.append(block)
        follower.computed = prompt
        follower.remembered, follower.prefix = min(leader.remembered, full), leader.prefix
        self._take(follower, self._wanted(follower))
        return [(leader.blocks[full], follower.blocks[full])] if prompt % BLOCK_TOKENS else []

    def release(self, completion: Completion) -> None:
        """Give back what it holds, and forget that anything was computed."""
        # The last first: an end of a chain is of no use without its beginning, so it is taken sooner.
        for block in reversed(completion.blocks):
            self.pool.give(block)
        del completion.blocks[:]
        completion.computed = completion.remembered = 0
        completion.prefix = None

    def remember(self, completion: Completion) -> None:
        """Put its newly computed full blocks into the prefix cache."""
        if not self.prefix_caching:
            return
        while (completion.remembered + 1) * BLOCK_TOKENS <= completion.computed:
            at = completion.remembered
            held = tuple(completion.tokens(at * BLOCK_TOKENS, BLOCK_TOKENS))
            before = _before(completion, at, completion.prefix)
            completion.prefix = self.prefixes.put(before, held, completion.blocks[at]).identity
            completion.remembered = at + 1

    def forget(self) -> None:
        """Empty the prefix cache, because what blocks hold may be wrong."""
        for block in range(1, self.pool.size + 1):
            self.pool.forget(block)

    def _wanted(self, completion: Completion) -> int:
        return blocks_for(completion.budget if self._reserve else completion.length)

    def _fits(self, completion: Completion, prefixes: list[Prefix], spare: int) -> bool:
        idle = sum(self.pool.users(prefix.block) == 0 for prefix in prefixes)
        fresh = self._wanted(completion) - len(prefixes)
        return fresh + idle + spare <= self.pool.available

    def _take(self, completion: Completion, blocks: int) -> None:
        while len(completion.blocks) < blocks:
            completion.blocks.append(self.pool.take())

    def _match(self, completion: Completion) -> list[Prefix]:
        """The longest cached prefix that leaves a token to compute, for its logits.

        Goes on where the last call ended: a completion may wait for room, and ask in every step.
        """
        found: list[Prefix] = completion.matched
        if not self.prefix_caching or completion.scores_prompt:
            return found
        there = next((i for i, prefix in enumerate(found) if not self.prefixes.holds(prefix)), len(found))
        del found[there:]
        before = found[-1].identity if found else completion.prefix_root
        for start in range(there * BLOCK_TOKENS, completion.length - BLOCK_TOKENS, BLOCK_TOKENS):
            held = tuple(completion.tokens(start, BLOCK_TOKENS))
            prefix = self.prefixes.find(_before(completion, start // BLOCK_TOKENS, before), held)
            if prefix is None:
                break
            found.append(prefix)
            before = prefix.identity
        return found


def _before(completion: Completion, block: int, before: Hashable) -> Hashable:
    """What the `block`-th of a completion's blocks hangs on: `before`; and where the response begins in it,
    what is composed from there on."""
    begins = completion.response_root is not None and block == completion.response // BLOCK_TOKENS
    return (before, completion.response_root) if begins else before
