"""Seconds of an optimiser step by contestant: the figures that they give, and the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.instruments.results import Spread, markdown_table, met
from training.recipe.settings import StackRecipe

FROZEN = (0, 1, 2, 4)

PEFT = "PEFT LoRA"
AUTOCAST = "PEFT LoRA, autocast"
LEAST_RATIO, MOST_GROWTH = 1.0, 0.15
"""Targets: a step costs no more than PEFT's, and each frozen stack adds at most so much of it."""


@dataclass(frozen=True)
class StepTimes:
    """All contestants with one shape of stack.

    Attributes:
        seconds: contestant -> of one step, per round.
        counts: contestant -> its trainable parameters.
    """

    stack: StackRecipe
    seconds: Mapping[str, Sequence[float]]
    counts: Mapping[str, int]

    @property
    def ratios(self) -> dict[str, Spread]:
        """Each peer -> our step over its, round by round; both without frozen stacks."""
        ours = self.seconds[ours_with(0)]
        return {peer: Spread.ratio(ours, self.seconds[peer]) for peer in (PEFT, AUTOCAST)}

    @property
    def growth(self) -> dict[str, Spread]:
        """Number of frozen stacks -> (t_k / t_0 - 1) / k."""
        alone = self.seconds[ours_with(0)]
        return {
            str(k): Spread.of(
                (t / t0 - 1) / k for t, t0 in zip(self.seconds[ours_with(k)], alone, strict=True)
            )
            for k in FROZEN
            if k > 0
        }

    def to_document(self) -> dict[str, Any]:
        return {
            "stack": {"experts": self.stack.experts, "rank": self.stack.rank, "top_k": self.stack.top_k},
            "trainable_parameters": dict(self.counts),
            "seconds_per_step": {name: Spread.of(values) for name, values in self.seconds.items()},
            "over_peers": self.ratios,
            "growth_per_frozen_stack": self.growth,
        }

    def tables(self) -> str:
        steps = [[name, self.counts[name], Spread.of(values)] for name, values in self.seconds.items()]
        targets: list[list[object]] = [
            [f"step over that of {peer}", ratio, f"<= {LEAST_RATIO:g}", met(ratio.median <= LEAST_RATIO)]
            for peer, ratio in self.ratios.items()
        ]
        targets += [
            [
                f"growth per frozen stack, {k} frozen",
                found,
                f"<= {MOST_GROWTH:g}",
                met(found.median <= MOST_GROWTH),
            ]
            for k, found in self.growth.items()
        ]
        return (
            f"## MoE-LoRA {self.stack.experts} x r{self.stack.rank}\n\n"
            f"{markdown_table(['', 'trainable parameters', 'seconds per step'], steps)}\n\n"
            f"{markdown_table(['', '', 'target', ''], targets)}"
        )


def ours_with(frozen: int) -> str:
    return f"MoE-LoRA, {frozen} frozen"
