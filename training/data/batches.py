"""Batches of examples as tensors, and the order that training takes them in."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from brainstacks.config import Applies
from brainstacks.errors import ConfigError
from training.data.encoding import Example

IGNORE = -100
"""Label of a position that no loss is taken at (torch's own convention)."""

TOKENS = 4096
"""Tokens of a forward without a backward pass, padding included: enough to fill the device."""

LABEL_COST = 4
"""Tokens of that budget that a labelled position takes: its logits, over a whole vocabulary, are most of the
memory that such a forward needs."""

POOL = 8
"""Batches' worth of examples that are sorted or packed together: little padding, yet a new mix each epoch."""

Row = tuple[Example, ...]
"""The examples of one row, in order; more than one where they are packed."""


@dataclass(frozen=True)
class Batch:
    """Right-padded rows of one or more examples each.

    Attributes:
        input_ids: [B, T] int64.
        attention_mask: [B, T] bool, true where a token is no padding.
        labels: [B, T] int64; the id that position t must predict (the token at t+1), or `IGNORE`.
        labelled: [M] int64; the positions, in the flattened batch, of the labels that are none of `IGNORE`,
            in order. The host knows them: to find them a device would have to be waited for.
        position_ids: [B, T] int64, restarting at 0 with each example, from which transformers builds the
            mask that keeps the examples of a row apart; None where no row holds more than one.
        segments: [B, T] int64; number in 0..E-1 of the example that a token belongs to, -1 at padding.
        examples: E, over all rows.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    labelled: Tensor
    position_ids: Tensor | None
    segments: Tensor
    examples: int

    @property
    def responses(self) -> Tensor:
        """[B, T] bool, true where a token predicts one of a response."""
        return self.labels != IGNORE

    def acted_on(self, applies: Applies) -> Tensor:
        """[B, T] bool, the tokens that a stack which `applies` there acts on."""
        return self.responses if applies == "response" else self.attention_mask

    def to(self, device: torch.device) -> Batch:
        """The same on `device`; copies to CUDA leave from pinned memory, and are not waited for."""

        def there(tensor: Tensor) -> Tensor:
            return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

        return Batch(
            there(self.input_ids),
            there(self.attention_mask),
            there(self.labels),
            there(self.labelled),
            None if self.position_ids is None else there(self.position_ids),
            there(self.segments),
            self.examples,
        )


def collate(rows: Sequence[Example] | Sequence[Sequence[Example]]) -> Batch:
    """Pad `rows` to the longest of them. Each is an example, or several that share the row."""
    packed = [(row,) if isinstance(row, Example) else tuple(row) for row in rows]
    shape = (len(packed), max(map(_tokens, packed)))
    input_ids = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE, dtype=torch.long)
    # Positions of padding stay 0: each is then a sequence of its own, that no example attends to.
    positions = torch.zeros(shape, dtype=torch.long)
    segments = torch.full(shape, -1, dtype=torch.long)
    count, labelled = 0, list[int]()
    for i, row in enumerate(packed):
        start = 0
        for example in row:
            end, response = start + len(example), start + len(example.prompt)
            ids = torch.tensor([*example.prompt, *example.response])
            input_ids[i, start:end] = ids
            labels[i, response - 1 : end - 1] = ids[len(example.prompt) :]
            labelled += range(i * shape[1] + response - 1, i * shape[1] + end - 1)
            positions[i, start:end] = torch.arange(len(ids))
            segments[i, start:end] = count
            start, count = end, count + 1
    shared = any(len(row) > 1 for row in packed)
    return Batch(
        input_ids,
        segments >= 0,
        labels,
        torch.tensor(labelled, dtype=torch.long),
        positions if shared else None,
        segments,
        count,
    )


def by_length(examples: Sequence[Example], batch_size: int) -> list[list[Example]]:
    """Batches for evaluation: examples of like length together, so that little is padding."""
    ordered = sorted(examples, key=len)
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


def within_budget(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Batches of the rows with these lengths, the shortest first.

    A batch, padded to its longest row, has at most `tokens` tokens, or one row.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not batches or (len(batches[-1]) + 1) * lengths[i] > tokens:
            batches.append([])
        batches[-1].append(i)
    return batches


def loss_batches(examples: Sequence[Example], tokens: int = TOKENS) -> list[list[int]]:
    """Rows of forwards that only measure a loss, examples of like size together.

    A batch, padded to its longest row, has at most `tokens` tokens and `tokens / LABEL_COST` labels, or one
    row: with the default budget its logits take 1024 times the vocabulary, whatever the examples.
    """
    return within_budget([max(len(e), LABEL_COST * len(e.response)) for e in examples], tokens)


class TrainingOrder:
    """What each optimiser step trains on, without end: a pure function of the arguments and its number.

    A cursor is one integer, and a resumed run needs nothing else. Every example comes exactly once an
    epoch, in a new order each, with rows of like length together. No step has more than `batch_size` rows;
    where they do not come out even, steps have one row less, and none is a small remainder.

    Args:
        examples: what to train on.
        batch_size: rows of a step, over all its micro-batches.
        seed: of the order.
        packing: put several examples in a row of up to `max_tokens`; otherwise a row is one example.
        max_tokens: longest packed row; a longer example has a row of its own.

    Raises:
        ConfigError: there is no example.
    """

    def __init__(
        self, examples: Sequence[Example], batch_size: int, seed: int, packing: bool, max_tokens: int
    ) -> None:
        if not examples:
            raise ConfigError(
                f"no record to train on fits {max_tokens} tokens; raise max_tokens under `data:`"
            )
        self._examples = examples
        self._batch_size = batch_size
        self._seed = seed
        self._packing = packing
        self._max_tokens = max_tokens
        self._starts = [0]  # of the epochs, as numbers of their first batches
        self._current: tuple[int, list[list[Row]]] | None = None

    def batch(self, index: int) -> list[Row]:
        """Rows of step `index` = 0, 1, 2, ..."""
        while self._starts[-1] <= index:
            epoch = len(self._starts) - 1
            self._starts.append(self._starts[-1] + len(self._epoch(epoch)))
        epoch = bisect_right(self._starts, index) - 1
        return self._epoch(epoch)[index - self._starts[epoch]]

    def _epoch(self, number: int) -> list[list[Row]]:
        if self._current is None or self._current[0] != number:
            self._current = (number, self._shuffled(random.Random(f"{self._seed}/{number}")))
        return self._current[1]

    def _shuffled(self, rng: random.Random) -> list[list[Row]]:
        order = list(self._examples)
        rng.shuffle(order)
        rows = self._packed(order) if self._packing else [(example,) for example in order]
        rng.shuffle(rows)
        batches = _batches(rows, self._batch_size)
        rng.shuffle(batches)
        return batches

    def _packed(self, examples: Sequence[Example]) -> list[Row]:
        per_row = max(1, self._max_tokens * len(examples) // sum(map(len, examples)))
        size = POOL * self._batch_size * per_row
        pools = (examples[i : i + size] for i in range(0, len(examples), size))
        return [row for pool in pools for row in pack(pool, self._max_tokens)]


def micro_batches(rows: int, count: int) -> list[range]:
    """The rows 0..rows-1 in at most `count` parts, none of them empty, of sizes that differ by one."""
    count = min(count, rows)
    return [range(i * rows // count, (i + 1) * rows // count) for i in range(count)]


def pack(examples: Sequence[Example], max_tokens: int) -> list[Row]:
    """First-fit decreasing: each example, longest first, joins the first row with room for it."""
    rows: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=len, reverse=True):
        fitting = (i for i, free in enumerate(room) if len(example) <= free)
        i = next(fitting, len(rows))
        if i == len(rows):
            rows.append([])
            room.append(max_tokens)
        rows[i].append(example)
        room[i] -= len(example)
    return [tuple(row) for row in rows]


def _tokens(row: Row) -> int:
    return sum(map(len, row))


def _batches(rows: Sequence[Row], batch_size: int) -> list[list[Row]]:
    """The fewest batches that hold all rows, of sizes that differ by one at most; sorted within pools."""
    count = -(-len(rows) // batch_size)
    ends = [i * len(rows) // count for i in range(count + 1)]
    ordered: list[Row] = []
    for first in range(0, count, POOL):
        ordered += sorted(rows[ends[first] : ends[min(first + POOL, count)]], key=_tokens)
    return [ordered[start:end] for start, end in pairwise(ends)]
