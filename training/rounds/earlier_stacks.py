"""What the frozen stacks of earlier domains do while another domain trains.

The router will later apply subsets of the stacks at fractional weights. A stack that was trained with all
earlier ones on at 1.0 (the paper) has only ever met that composition; one trained alone has met none.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import DeltaSource
from training.recipe.settings import EarlierMode

PRESENCE = 0.5
"""Probability that a sampled composition holds a stack."""
WEIGHTS = (0.2, 1.0)
"""Range that its weight is drawn from, uniformly: above the router's gate threshold."""


class EarlierStacks:
    """The compositions of earlier stacks that a domain meets in training.

    Args:
        bank: holds the stacks of `domains`.
        domains: the earlier domains, in order.
        mode: `all` on at 1.0, `none`, or a subset and weights `sampled` for each row.
        seed: of the samples.
    """

    def __init__(self, bank: StackBank, domains: Sequence[str], mode: EarlierMode, seed: int) -> None:
        self._bank = bank
        self._domains = tuple(domains)
        self._mode = mode
        self._seed = seed

    def of(self, rows: Sequence[str]) -> Sequence[DeltaSource]:
        """The deltas for a batch, given a name for each of its rows; equal names get equal samples."""
        if self._mode == "none" or not self._domains:
            return ()
        if self._mode == "all":
            return (self._bank.bind([dict.fromkeys(self._domains, 1.0)]),)
        bound = self._bank.bind([self.sample(row) for row in rows])
        return (bound,) if bound else ()

    def sample(self, row: str) -> dict[str, float]:
        """Domain -> weight, of those present."""
        draw = random.Random(f"{self._seed}/{row}")
        present = [domain for domain in self._domains if draw.random() < PRESENCE]
        return {domain: draw.uniform(*WEIGHTS) for domain in present}
