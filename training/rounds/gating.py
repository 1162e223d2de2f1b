"""How the expert gates of a round begin, and what they become while it trains."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gating:
    """The defaults are the paper's. Recipes have no others: what these are worth is for `moe_search` to find.

    Progress is the share of a round's steps that are behind, 0..1.

    Attributes:
        init: factor of the gates' initial weights; noise weights stay as they are.
        annealed: the noise falls linearly, to none at the end.
        soft: share of the steps, at the start, in which tokens take all experts, weighted by the gate,
            without noise or balance loss.
    """

    init: float = 1.0
    annealed: bool = False
    soft: float = 0.0

    def noise(self, progress: float) -> float:
        """Factor of the gates' noise."""
        return 1.0 - progress if self.annealed else 1.0

    def takes_all(self, progress: float) -> bool:
        """Whether tokens take all experts still."""
        return progress < self.soft


PUBLISHED = Gating()
"""The paper's."""
