"""The KV blocks of each sequence: taken on admission and while it grows, shared by prefix, given back."""

from __future__ import annotations

from brainstacks.engine.block_pool import BLOCK_TOKENS, BlockPool, blocks_for
from brainstacks.engine.prefix_cache import Prefix, PrefixCache
from brainstacks.engine.sequence import Sequence

BlockCopy = tuple[int, int]
"""(source block, target block), whose keys and values are to be copied before the next step."""


class BlockManager:
    """Args:
    tokens: KV memory, in tokens.
    prefix_caching: sequences reuse full blocks that others of the same composition computed.
    reserve: a sequence takes the blocks of its longest possible completion at once, and never grows.
    """

    def __init__(self, tokens: int, *, prefix_caching: bool, reserve: bool) -> None:
        self.prefix_caching = prefix_caching
        self._reserve = reserve
        self.prefixes = PrefixCache()
        self.pool = BlockPool(blocks_for(tokens), self.prefixes)
        self.asked_tokens = 0  # that came with admitted sequences, since the start
        self.reused_tokens = 0  # of them, those that the prefix cache had

    def fits(self, sequence: Sequence, spare: int) -> bool:
        """Whether `admit` would succeed and leave `spare` blocks."""
        return self._fits(sequence, self._match(sequence), spare)

    def admit(self, sequence: Sequence, spare: int, *, reuse: bool = True) -> bool:
        """Take blocks for all known tokens; what a prefix in the cache holds counts as computed.

        Args:
            reuse: False for a sequence whose tokens are all to be computed, whatever the cache holds.

        Returns:
            False, and nothing is taken, when fewer than `spare` blocks would be left.
        """
        prefixes = self._match(sequence) if reuse else []
        if not self._fits(sequence, prefixes, spare):
            return False
        for prefix in prefixes:
            self.pool.share(prefix.block)
            sequence.blocks.append(prefix.block)
        sequence.computed = len(prefixes) * BLOCK_TOKENS
        sequence.remembered = len(prefixes)
        sequence.prefix = prefixes[-1].identity if prefixes else sequence.prefix_root
        self._take(sequence, self._wanted(sequence))
        if reuse:
            self.asked_tokens += sequence.length
            self.reused_tokens += sequence.computed
        return True

    def extend(self, sequence: Sequence) -> bool:
        """Have room for one more computed token; False when no block is to be had."""
        if sequence.computed < len(sequence.blocks) * BLOCK_TOKENS:
            return True
        if not self.pool.available:
            return False
        sequence.blocks.append(self.pool.take())
        return True

    def fork(self, leader: Sequence, follower: Sequence) -> list[BlockCopy] | None:
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

    def release(self, sequence: Sequence) -> None:
        """Give back what it holds, and forget that anything was computed."""
        # The last first: an end of a chain is of no use without its beginning, so it is taken sooner.
        for block in reversed(sequence.blocks):
            self.pool.give(block)
        del sequence.blocks[:]
        sequence.computed = sequence.remembered = 0
        sequence.prefix = None

    def remember(self, sequence: Sequence) -> None:
        """Put its newly computed full blocks into the prefix cache."""
        if not self.prefix_caching:
            return
        while (sequence.remembered + 1) * BLOCK_TOKENS <= sequence.computed:
            at = sequence.remembered
            held = tuple(sequence.tokens(at * BLOCK_TOKENS, BLOCK_TOKENS))
            sequence.prefix = self.prefixes.put(sequence.prefix, held, sequence.blocks[at]).identity
            sequence.remembered = at + 1

    def forget(self) -> None:
        """Empty the prefix cache, because what blocks hold may be wrong."""
        for block in range(1, self.pool.size + 1):
            self.pool.forget(block)

    def _wanted(self, sequence: Sequence) -> int:
        return blocks_for(sequence.budget if self._reserve else sequence.length)

    def _fits(self, sequence: Sequence, prefixes: list[Prefix], spare: int) -> bool:
        idle = sum(self.pool.users(prefix.block) == 0 for prefix in prefixes)
        fresh = self._wanted(sequence) - len(prefixes)
        return fresh + idle + spare <= self.pool.available

    def _take(self, sequence: Sequence, blocks: int) -> None:
        while len(sequence.blocks) < blocks:
            sequence.blocks.append(self.pool.take())

    def _match(self, sequence: Sequence) -> list[Prefix]:
        """The longest cached prefix that leaves a token to compute, for its logits."""
        found: list[Prefix] = []
        if not self.prefix_caching or sequence.scores_prompt:
            return found
        before = sequence.prefix_root
        for start in range(0, sequence.length - BLOCK_TOKENS, BLOCK_TOKENS):
            prefix = self.prefixes.find(before, tuple(sequence.tokens(start, BLOCK_TOKENS)))
            if prefix is None:
                break
            found.append(prefix)
            before = prefix.identity
        return found
