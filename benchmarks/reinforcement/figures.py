"""What a stage changed: rewards, preferences and losses without and with it, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.instruments.results import markdown_table
from training.evaluation.intervals import Estimate, Share, interval, resampled_nll


@dataclass(frozen=True)
class Measured:
    """Records that were never trained on, under one composition, without or with a stage.

    Attributes:
        rewards: 0 or 1 for each question's likeliest answer.
        preferred, rejected: nats of the two answers of each pair.
        nats: domain -> nats of each record's response.
    """

    rewards: Sequence[float]
    preferred: Sequence[float]
    rejected: Sequence[float]
    nats: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Change:
    """One composition without and with a stage.

    Attributes:
        tokens: domain -> answer tokens of each of its records.
    """

    before: Measured
    after: Measured
    tokens: Mapping[str, Sequence[int]]

    @property
    def accuracy(self) -> Share:
        """Pairs whose preferred answer gained more on the model without the stage than the other; what DPO
        raises, and counts: undecided ones are half won. Without a stage all are."""
        before, after = self.before, self.after
        rows = zip(before.preferred, after.preferred, before.rejected, after.rejected, strict=True)
        gains = [(a - b) - (c - d) for a, b, c, d in rows]
        won = [(gain > 0) + 0.5 * (gain == 0) for gain in gains]
        return Share(sum(won), len(won))

    def shares(self) -> dict[str, tuple[Share, Share, Estimate]]:
        """Figure -> without, with, difference."""
        found = {}
        for name, of in (("reward", _right), ("preferred is likelier", _likelier)):
            without, given = of(self.before), of(self.after)
            difference = _difference(without, given, [1] * len(given))
            found[name] = (_share(without), _share(given), difference)
        return found

    def losses(self) -> dict[str, tuple[float, float, Estimate]]:
        """Domain -> nats per answer token without, with, difference."""
        return {
            domain: (
                sum(before) / sum(tokens),
                sum(self.after.nats[domain]) / sum(tokens),
                _difference(before, self.after.nats[domain], tokens),
            )
            for domain, before in self.before.nats.items()
            for tokens in [self.tokens[domain]]
        }

    def to_dict(self) -> dict[str, Any]:
        shares, losses = self.shares(), self.losses()
        return {
            "preference_accuracy": _shown(self.accuracy),
            "shares": {
                n: {"before": _shown(b), "after": _shown(a), "difference": d.to_dict()}
                for n, (b, a, d) in shares.items()
            },
            "nll": {
                n: {"before": b, "after": a, "difference": d.to_dict()} for n, (b, a, d) in losses.items()
            },
        }


def table(changes: Mapping[str, Change]) -> str:
    """Of each composition, by its name."""
    rows: list[list[object]] = []
    for name, change in changes.items():
        rows.append([name, "preference accuracy", "", change.accuracy, ""])
        rows += [[name, what, *found] for what, found in change.shares().items()]
        rows += [
            [name, f"NLL, {domain}", f"{before:.3f}", f"{after:.3f}", difference]
            for domain, (before, after, difference) in change.losses().items()
        ]
    return markdown_table(["composition", "", "without", "with the stage", "difference"], rows)


def _right(measured: Measured) -> list[float]:
    return list(measured.rewards)


def _likelier(measured: Measured) -> list[float]:
    return [float(a < b) for a, b in zip(measured.preferred, measured.rejected, strict=True)]


def _share(found: Sequence[float]) -> Share:
    return Share(round(sum(found)), len(found))


def _shown(share: Share) -> dict[str, Any]:
    return {"value": share.value, "interval": list(share.interval), "count": share.total}


def _difference(before: Sequence[float], after: Sequence[float], tokens: Sequence[int]) -> Estimate:
    """Of the means over tokens, paired by record."""
    drawn = resampled_nll(list(zip(before, after, strict=True)), tokens)
    return Estimate((sum(after) - sum(before)) / sum(tokens), interval(drawn[:, 1] - drawn[:, 0]))
