"""Who runs in the next step. Decisions only: deques and counts, no tensors."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from brainstacks.config import EngineConfig
from brainstacks.engine.sequence import Sequence


@dataclass(frozen=True)
class Row:
    """`count` tokens of `sequence`, from position `start` on, in one step."""

    sequence: Sequence
    start: int
    count: int


class Scheduler:
    """First come, first served, within the batch, the prefill and the KV budget.

    Running sequences hold the slots 0..len(running)-1, in that order: decode attention reads the cache as
    one contiguous block.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a routed sequence."""
        self.waiting.append(sequence)

    def schedule(self) -> list[Row]:
        """Admit what fits, then one decode token per running sequence and prefill up to the budget."""
        while self.waiting and self._fits(self.waiting[0]):
            sequence = self.waiting.popleft()
            sequence.slot = len(self.running)
            self.running.append(sequence)
        left = self._config.max_prefill_tokens
        rows = []
        for sequence in self.running:
            if sequence.pending == 1 and sequence.output_ids:
                rows.append(Row(sequence, sequence.computed, 1))
            elif left > 0:
                count = min(sequence.pending, left)
                left -= count
                rows.append(Row(sequence, sequence.computed, count))
        return rows

    def finish(self, sequence: Sequence) -> tuple[int, int] | None:
        """Drop a sequence; a move (from slot, to slot) that keeps the slots dense, when one is needed."""
        if sequence.slot is None:
            if sequence in self.waiting:
                self.waiting.remove(sequence)
            return None
        slot, sequence.slot = sequence.slot, None
        last = self.running.pop()
        if last is sequence:
            return None
        source, last.slot = len(self.running), slot
        self.running[slot] = last
        return source, slot

    def _fits(self, sequence: Sequence) -> bool:
        if len(self.running) >= self._config.max_batch_size:
            return False
        longest = max(s.budget for s in [*self.running, sequence])
        return (len(self.running) + 1) * longest <= self._config.kv_cache_tokens
