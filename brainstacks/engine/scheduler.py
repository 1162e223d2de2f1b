"""Who runs in the next step. Decisions only: lists and counts, no tensors."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

from brainstacks.config import EngineConfig
from brainstacks.engine.block_manager import BlockCopy, BlockManager
from brainstacks.engine.completion import Completion


class Row(NamedTuple):
    """`count` tokens of `completion`, from position `start` on, in one step."""

    completion: Completion
    start: int
    count: int  # type: ignore[assignment]  # in the place of a method of tuples


def _place(completion: Completion) -> tuple[int, int, int]:
    return (completion.request.priority, completion.arrival, completion.index)


class Scheduler:
    """First come, first served among those of one priority, within the batch, the prefill and the KV budget.

    A completion takes blocks for what is known of it when it is admitted, and further ones as it grows. When
    none is left, the last in line gives up its own and waits again, to compute them anew; so the first in
    line always gets on. Deterministic: nobody gives up anything, because keys and values that are computed
    twice may differ in their last bits, and a prompt is cut at fixed places.

    Attributes:
        waiting, running: in line, the lowest priority first, then in the order of arrival.
        preemptions: how many have given up their blocks, since the start.
    """

    def __init__(self, config: EngineConfig, blocks: BlockManager) -> None:
        self._config = config
        self._blocks = blocks
        self.waiting: list[Completion] = []
        self.running: list[Completion] = []
        self.preemptions = 0

    def add(self, completion: Completion) -> None:
        """Queue a composed completion, at its place in line."""
        insort(self.waiting, completion, key=_place)

    @property
    def can_run(self) -> bool:
        """Whether `schedule` would find something to do."""
        if any(not completion.paused for completion in self.running):
            return True
        head = next((completion for completion in self.waiting if not completion.paused), None)
        if head is None or not self._config.deterministic:
            return head is not None  # whoever is paused makes room for it
        return len(self.running) < self._config.max_batch_size and self._blocks.fits(head, 0)

    def schedule(self) -> list[Row]:
        """One decode token per running completion; then prefill within the budget, admitting who fits."""
        left = self._config.max_prefill_tokens
        rows = self._decode_rows()
        for completion in self.running:
            if left > 0 and not completion.decodes and not completion.paused:
                rows.append(self._prefill_row(completion, left))
                left -= rows[-1].count
        reserved = 0
        for completion in tuple(self.waiting):
            if left <= 0 or len(self.running) + reserved >= self._config.max_batch_size + self._paused:
                break
            if completion.paused:
                continue
            if completion.leader is not None:
                reserved += 1  # it joins when the prompt is computed, and finds a place then
                continue
            if not self._admit(completion, reserved):
                break
            rows.append(self._prefill_row(completion, left))
            left -= rows[-1].count
        return rows

    def foresee(self) -> list[Row]:
        """What `schedule` will give when the tokens in the air are there, if only `max_tokens` ends anybody
        and nobody comes in. They have the blocks for it then.

        Returns:
            nothing where that cannot be said: somebody reads a prompt, or would have to give up its blocks.
        """
        rows: list[Row] = []
        for completion in self.running:
            flying = completion.pending == 0
            if completion.paused or (flying and completion.computed + 1 >= completion.budget):
                continue
            if not (flying or completion.decodes) or not self._blocks.extend(completion):
                return []
            rows.append(Row(completion, completion.computed, 1))
        return rows

    def forwards(self, rows: Sequence[Row]) -> list[list[Row]]:
        """The rows of a step that are computed together: all, or deterministic, those that decode.

        A prompt's part is then computed alone, so that its shape is its own.
        """
        if not self._config.deterministic:
            return [list(rows)] if rows else []
        decode = [row for row in rows if row.completion.decodes]
        return [*([decode] if decode else []), *([row] for row in rows if not row.completion.decodes)]

    def fork(self, leader: Completion) -> tuple[list[Completion], list[BlockCopy]]:
        """`leader` has computed its prompt: its other completions join it, where there is room.

        Returns:
            those that share the prompt now, and the blocks to copy for them; the others compute it themselves
            when their turn comes.
        """
        joined: list[Completion] = []
        copies: list[BlockCopy] = []
        for follower in [s for s in self.waiting if s.leader is leader]:
            follower.leader = None
            follower.timing.scheduled = leader.timing.scheduled
            if len(self.running) < self._config.max_batch_size:
                made = self._blocks.fork(leader, follower)
                if made is not None:
                    self.waiting.remove(follower)
                    insort(self.running, follower, key=_place)
                    joined.append(follower)
                    copies += made
        return joined, copies

    def finish(self, completion: Completion) -> None:
        """Drop a completion, whether it runs or waits; its blocks are free."""
        for queue in (self.running, self.waiting):
            if completion in queue:
                queue.remove(completion)
        self._blocks.release(completion)

    @property
    def _paused(self) -> int:
        """Running completions that would make room."""
        return 0 if self._config.deterministic else sum(s.paused for s in self.running)

    def _decode_rows(self) -> list[Row]:
        rows = []
        for completion in tuple(self.running):  # the first in line take blocks first
            if not completion.paused and completion.decodes and self._grow(completion):
                rows.append(Row(completion, completion.computed, 1))
        return rows

    def _grow(self, completion: Completion) -> bool:
        """Have room for one more token, at the cost of others; False when it is the one to give up."""
        while not self._blocks.extend(completion):
            victim = self._victim()
            self._preempt(victim)
            if victim is completion:
                return False
        return True

    def _prefill_row(self, completion: Completion, left: int) -> Row:
        if self._config.deterministic:
            chunk = self._config.max_prefill_tokens
            left = chunk - completion.computed % chunk
        return Row(completion, completion.computed, min(completion.pending, left))

    def _admit(self, completion: Completion, reserved: int) -> bool:
        """Admit, at the cost of paused completions where need be."""
        limit = self._config.max_batch_size - reserved
        while len(self.running) >= limit or not self._blocks.admit(completion, self._spare):
            if not self._paused:
                return False
            self._preempt(self._victim())
        if completion.timing.scheduled is None:  # not where it comes back
            completion.timing.scheduled = perf_counter()
        self.waiting.remove(completion)
        insort(self.running, completion, key=_place)
        return True

    @property
    def _spare(self) -> int:
        """Blocks that an admission leaves for those that run: each may soon need one."""
        return 0 if self._config.deterministic else len(self.running)

    def _victim(self) -> Completion:
        """Who makes room: one that is paused, else the last in line."""
        return max(self.running, key=lambda s: (s.paused, *_place(s)))

    def _preempt(self, completion: Completion) -> None:
        self._blocks.release(completion)
        if completion.scores_prompt:
            completion.prompt_logprobs.clear()  # they come again with the prompt's rows
        self.running.remove(completion)
        self.add(completion)
        self.preemptions += 1
