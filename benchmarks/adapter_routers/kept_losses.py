"""Losses on disk, each by all that decides it: what one router has asked for, another finds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from brainstacks.durable import make_directory, storage_full
from brainstacks.layers.hooks import DeltaSource
from training.data.batches import collate, loss_batches
from training.data.encoding import Example
from training.progress import shown
from training.rounds.objective import response_nll, row_sums
from training.router.stacked_base import StackedBase, Weights
from training.runs.stored import read_lines

AT_ONCE = 128
"""Rows measured before they are kept: enough to fill forwards, few enough to lose to a kill."""


class KeptLosses:
    """The losses in the JSONL file `path`, which is made where there is none.

    Args:
        facts: what decides every loss besides its row, as JSON values: base, quantisation, dtype.

    Raises:
        ConfigError: a line is no JSON.
        StorageFull: no room.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self._path = path
        self._facts = dict(facts)
        with storage_full(path.name):
            make_directory(path.parent)
            with path.open("a+b") as file:
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)  # what a kill cut off would spoil the next line
        self._known: dict[str, float] = dict(read_lines(path))

    def under(
        self, stacked: StackedBase, examples: Sequence[Example], weights: Sequence[Weights]
    ) -> list[float]:
        """NLL (nats, summed over the answer) of each example under its own weights."""
        applied = [
            sorted([stacked.digests[d], w] for d, w in composition.items() if w) for composition in weights
        ]

        def measure(rows: Sequence[int]) -> list[float]:
            return stacked.losses([examples[i] for i in rows], [weights[i] for i in rows])

        return self._of(examples, applied, measure)

    def varied(
        self,
        stacked: StackedBase,
        examples: Sequence[Example],
        forms: Sequence[Any],
        source: Callable[[Sequence[int]], DeltaSource],
    ) -> list[float]:
        """The same under deltas whose weights vary by layer or token.

        Args:
            forms: of each example, all that decides its weights besides it and the stacks: JSON values.
            source: of a batch of these rows.
        """

        def measure(rows: Sequence[int]) -> list[float]:
            found = dict.fromkeys(rows, 0.0)
            for places in loss_batches([examples[i] for i in rows]):
                chosen = [rows[place] for place in places]
                batch = collate([examples[i] for i in chosen])
                there = batch.to(stacked.base.device)
                with stacked.hooks.composed(source(chosen), responses=there.responses):
                    sums = row_sums(response_nll(stacked.base.model, there), batch)
                found.update(zip(chosen, sums.tolist(), strict=True))
            return list(found.values())

        stacks = list(stacked.digests.values())
        return self._of(examples, [[form, stacks] for form in forms], measure)

    def _of(
        self,
        examples: Sequence[Example],
        applied: Sequence[Any],
        measure: Callable[[Sequence[int]], list[float]],
    ) -> list[float]:
        keys = [
            _digest([self._facts, example.prompt, example.response, what])
            for example, what in zip(examples, applied, strict=True)
        ]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        missing = sorted(i for key, i in first.items() if key not in self._known)
        with shown("losses", len(missing), "rows") as progress:
            for start in range(0, len(missing), AT_ONCE):
                rows = missing[start : start + AT_ONCE]
                self._keep(dict(zip((keys[i] for i in rows), measure(rows), strict=True)))
                progress.advance(count=len(rows))
        return [self._known[key] for key in keys]

    def _keep(self, found: Mapping[str, float]) -> None:
        with storage_full(self._path.name), self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(item) + "\n" for item in found.items())
            file.flush()
            os.fsync(file.fileno())
        self._known.update(found)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
